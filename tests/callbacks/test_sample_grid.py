"""Pictures of samples: where they are written and what they show."""

import numpy as np
import pytest
from PIL import Image

from keras_imm import distribution
from keras_imm.callbacks import SampleGrid, pixels_to_uint8


def test_the_picture_has_a_row_per_step_count_and_a_column_per_label(stub, tmp_path):
    pictures = SampleGrid(
        tmp_path / "new" / "{epoch:03d}.png", labels=[0, 5], num_steps=(1, 2), freq=2
    )
    stub.run(pictures, epochs=4)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "002.png",
        "004.png",
    ]
    picture = np.asarray(Image.open(tmp_path / "new" / "002.png"))
    white, black = np.full((2, 3), 255), np.zeros((2, 3))
    # -1 and 5 / 10 - 1 in one step; both lie below the range in two.
    expected = [[black, white * 0 + 64], [black, black]]
    expected = np.block(
        [[np.pad(e, 1, constant_values=255) for e in row] for row in expected]
    )
    np.testing.assert_array_equal(picture, expected)


def test_names_in_the_logs_and_a_decoder_can_be_used(stub, tmp_path):
    def decode(latents):
        shape = (len(latents), 4, 4, 3)
        return np.full(shape, 200, np.uint8)

    pictures = SampleGrid(
        tmp_path / "{loss:.0f}.png", decode, num_samples=3, num_steps=1
    )
    loss = stub.run(pictures).history["loss"][0]
    picture = np.asarray(Image.open(tmp_path / f"{loss:.0f}.png"))
    assert picture.shape == (6, 18, 3)
    assert (picture[1:5, 1:5] == 200).all()


def test_bytes_are_truncated_and_clipped():
    values = np.array([-2, -1, 0, 0.99, 1, 2], "float32")
    assert pixels_to_uint8(values).tolist() == [0, 0, 128, 254, 255, 255]


def test_a_decoder_that_returns_floats_is_named(stub, tmp_path):
    pictures = SampleGrid(tmp_path / "a.png", np.abs, num_samples=1)
    with pytest.raises(ValueError, match=r"`to_uint8`.*float32.*\(1, 2, 3, 1\)"):
        stub.run(pictures)


def test_many_samples_wrap_and_the_rest_is_white(stub, tmp_path):
    grid = SampleGrid(tmp_path / "a.png", labels=[0] * 5, num_steps=(1, 2), columns=3)
    stub.run(grid)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (2 * 2 * 4, 3 * 5)  # images of 2 x 3 with a border of 1
    black = (picture == 0).reshape(4, 4, 3, 5).any(axis=(1, 3))
    assert black.tolist() == [[True] * 3, [True, True, False]] * 2


def test_a_few_dozen_labels_make_rows_of_sixteen(stub, tmp_path):
    stub.run(SampleGrid(tmp_path / "a.png", labels=[0] * 40, num_steps=1))
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (3 * 4, 16 * 5)


def test_steps_name_the_pictures(stub, tmp_path):
    grid = SampleGrid(
        tmp_path / "{epoch}_{step:03d}.png", num_samples=1, every_n_steps=3
    )
    stub.run(grid, epochs=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["2_003.png", "3_006.png"]


def test_only_the_chief_writes(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "is_chief", lambda: False)
    stub.run(SampleGrid(tmp_path / "a.png", num_samples=1))
    assert stub.calls  # a model spread over processes needs them all
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["png", "JPG", "jpeg", "webp"])
def test_the_ending_decides_the_format(stub, tmp_path, ending):
    stub.run(SampleGrid(tmp_path / f"{{loss:08.3f}}.{ending}", num_samples=1))
    (path,) = tmp_path.iterdir()
    expected = {"png": "PNG", "webp": "WEBP"}.get(ending, "JPEG")
    assert Image.open(path).format == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filepath": None}, "`filepath`, `tensorboard` or both"),
        ({"columns": 0}, "`columns`.*0"),
        ({"to_uint8": "decode"}, "`to_uint8`.*'decode'"),
        (
            {"filepath": "{loss}.png", "every_n_steps": 2},
            r"`filepath`.*\{epoch\} and \{step\}.*'\{loss\}.png'",
        ),
        ({"filepath": "runs/samples"}, "`filepath`.*'.png'.*'runs/samples'"),
        ({"filepath": "runs/samples_{loss:.4f}"}, "`filepath`.*'.png'.*samples_"),
        ({"filepath": "samples.keras"}, "`filepath`.*'.png'.*samples.keras"),
        ({"filepath": 3}, "`filepath`.*'.png'.*3"),
        ({"filepath": "{}.png"}, r"`filepath`.*\{epoch\}.*'\{\}.png'"),
        ({"filepath": "{epoch.png"}, r"`filepath`.*\{epoch\}.*'\{epoch.png'"),
        ({"filepath": "{epoch:.2x}.png"}, r"`filepath`.*\{epoch:.2x\}"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleGrid(**{"filepath": "a.png", "num_samples": 1, **arguments})
