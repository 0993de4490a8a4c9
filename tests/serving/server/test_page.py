"""The server's page, in a browser."""

import re
import shutil

import numpy as np
import pytest
from running_server import RunningServer

from keras_imm.serving.server.keras_servable import KerasServable

pytestmark = pytest.mark.one_backend("a page in a browser")
CHROMIUM, DRIVER = map(shutil.which, ("chromium", "chromedriver"))


@pytest.fixture
def servable(tiny_model):
    return KerasServable(tiny_model, [1, 2], value_range=(-3, 3))


@pytest.fixture
def server(servable):
    names = [str(i) for i in range(10)]
    with RunningServer(servable, class_names=names) as server:
        yield server


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    service = webdriver.ChromeService(DRIVER)
    browser = webdriver.Chrome(options, service)
    yield browser
    browser.quit()


PIXELS = """return [...document.querySelectorAll("canvas")].map((canvas) =>
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data])"""


def drawn(browser):
    """The images in the page, uint8 of shape (16, 4, 4, 1)."""
    pixels = np.array(browser.execute_script(PIXELS)).reshape(-1, 4, 4, 4)
    assert (pixels[..., 3] == 255).all()
    assert (pixels[..., :3] == pixels[..., :1]).all()
    return pixels[..., :1]


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no browser: apt-get install chromium chromium-driver",
)
def test_the_page(server, servable, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 20)

    def text(name):
        return browser.find_element(By.ID, name).text

    def choose(legend, value):
        choices = f"//fieldset[legend='{legend}']//label"
        browser.find_element(
            By.XPATH, f"{choices}[normalize-space()='{value}']"
        ).click()

    def write_seed(seed):
        field = browser.find_element(
            By.XPATH, "//input[@id=//label[.='First seed']/@for]"
        )
        field.clear()
        field.send_keys(str(seed))

    def shows(steps, label, seed):
        inputs = {
            "seed": np.arange(seed, seed + 16),
            "label": np.full(16, label, "int32"),
        }
        expected = servable.run(f"generate_{steps}_steps", inputs)["image"]

        def same(_):
            found = drawn(browser)
            return found.shape == expected.shape and (
                np.abs(found - np.int64(expected)).max() <= 1
            )

        wait.until(same)
        steps_text = "1 step" if steps == 1 else f"{steps} steps"
        assert re.fullmatch(rf"16 images in {steps_text}: \d+ ms", text("status"))
        return expected

    browser.get(server.url)
    zeros = shows(2, 0, 0)
    choose("Digit", 2)
    twos = shows(2, 2, 0)
    assert np.abs(np.int64(zeros) - np.int64(twos)).max() > 20
    choose("Steps", 1)
    shows(1, 2, 0)
    write_seed(2**62 + 1)  # which no number of JavaScript is
    shows(1, 2, 2**62 + 1)
    browser.find_element(By.ID, "next").click()
    shows(1, 2, 2**62 + 17)
    canvas = browser.find_element(By.TAG_NAME, "canvas")
    assert canvas.accessible_name == f"Digit 2, seed {2**62 + 17}"

    write_seed("x")
    assert text("error") == "The seed must be a whole number."
    write_seed(5)
    shows(1, 2, 5)
    assert text("error") == ""
    choose("Digit", 7)  # the model has three
    wait.until(lambda _: "must be in [0, 3]" in text("error"))
    assert not [
        entry for entry in browser.get_log("browser") if entry["source"] == "javascript"
    ]
