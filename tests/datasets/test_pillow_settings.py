"""Processes that read do with Pillow what threads do."""

import pickle
import warnings

import numpy as np
import pytest
from image_files import encoded, pixels, write_classes
from PIL import Image, ImageFile, PngImagePlugin

from keras_imm.datasets import load, pillow_settings

pytestmark = pytest.mark.one_backend("NumPy code")


def reader(file, name):
    """A format of another library."""


def test_settings_and_formats_are_told(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 7)
    for table in ("OPEN", "ID"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    Image.register_open("ANOTHER", reader)
    told = pickle.loads(pickle.dumps(pillow_settings.current()))
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = 5, 5
    del Image.OPEN["ANOTHER"]
    pillow_settings.apply(told)
    assert (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK) == (None, 7)
    assert Image.OPEN["ANOTHER"] == (reader, None)
    assert not {"PNG", "JPEG"} & told["readers"].keys()


@pytest.mark.slow("child processes")
def test_processes_read_and_skip_what_threads_do(tmp_path, monkeypatch):
    folder = write_classes(tmp_path / "images", (4,), height=8, width=8)
    large, cut = folder / "class_0" / "001.png", folder / "class_0" / "002.png"
    large.write_bytes(encoded(pixels(1, 40, 40)))
    cut.write_bytes(encoded(pixels(2, 8, 8))[:-60])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    read = []
    for workers in (0, 1):
        options = {"image_size": 8, "on_corrupt": "skip", "num_workers": workers}
        dataset = load(folder, 4, shuffle=False, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read.append(dataset[0][0])
        assert [name.rpartition("/")[2] for name in dataset.corrupt] == ["001.png"]
        dataset.close()
    np.testing.assert_array_equal(*read)
