"""SavedModels behind a server, against the model that they were written from."""

import io
import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from running_server import RunningServer
from server_process import assert_same_images

from keras_imm.serving import export_saved_model
from keras_imm.serving.server import loading
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.keras_servable import KerasServable
from keras_imm.serving.server.saved_model_servable import (
    SavedModelServable,
    newest_version,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="SavedModels are the same from all backends, and exports take seconds",
)

WIDE = (-3.0, 3.0)
INPUTS = {
    "seed": np.array([1, 2**40, -(2**63), 2**63 - 1], "int64"),
    "label": np.array([0, 1, 2, 3], "int32"),
}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """A folder of versions, of which 10 is the newest."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    export_saved_model(
        tiny_model, folder, (1, 2), value_range=WIDE, warmup=False, version=10
    )
    (folder / "9").mkdir()
    (folder / "9" / "saved_model.pb").write_bytes(b"not one")
    return folder


@pytest.fixture(scope="module")
def servable(exported):
    return loading.load(exported)


@pytest.fixture(scope="module")
def of_keras(tiny_model):
    return KerasServable(tiny_model, [1, 2], value_range=WIDE)


def test_the_newest_version_is_taken(exported, servable, tmp_path):
    assert isinstance(servable, SavedModelServable)
    assert servable.version == 10
    assert newest_version(exported / "10") == exported / "10"
    assert loading.name_of(str(exported / "10")) == "tiny"
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert newest_version(folder) is None


def test_both_kinds_of_models_answer_alike(servable, of_keras):
    for name, signature in of_keras.signatures.items():
        found = servable.signatures[name]
        assert dict(found.inputs) == dict(signature.inputs)
        assert dict(found.outputs) == dict(signature.outputs)
    for name in ("serving_default", "generate_1_steps", "generate_2_steps"):
        assert servable.check(name, INPUTS) == 4
        found = servable.run(name, INPUTS)["image"]
        assert_same_images(found, of_keras.run(name, INPUTS)["image"])
        assert found.std() > 10


def test_pictures(servable):
    images = servable.run("serving_default", INPUTS)["image"]
    found = servable.run("serving_png", INPUTS)["image_bytes"]
    pictures = [np.asarray(Image.open(io.BytesIO(png))) for png in found]
    assert_same_images(pictures, images[..., 0])


def test_what_the_graph_refuses(servable):
    inputs = INPUTS | {"label": np.array([0, 1, 2, 4], "int32")}
    servable.check("serving_default", inputs)
    with pytest.raises(RequestError, match=r"must be in \[0, 3\]") as refused:
        servable.run("serving_default", inputs)
    assert refused.value.code == "INVALID_ARGUMENT"


def test_rows_at_fault_do_no_harm_over_http(servable):
    with RunningServer(servable) as server:
        bodies = [{"instances": [{"seed": 1, "label": label}]} for label in (4, 0)]
        path = "/v1/models/tiny/versions/10:predict"
        status, answer = server.ask(path, bodies[0])
        assert status == 400 and "must be in [0, 3]" in answer["error"]
        status, answer = server.ask(path, bodies[1])
        assert status == 200
    one = {name: array[:1] for name, array in INPUTS.items()}
    expected = servable.run("serving_default", one)["image"]
    assert_same_images(answer["predictions"], expected)


@pytest.mark.parametrize("missing", ["variables", "variables/variables.data*"])
def test_half_of_a_model(exported, tmp_path, missing):
    folder = tmp_path / "3"
    shutil.copytree(exported / "10", folder)
    (path,) = folder.glob(missing)
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"Cannot load the SavedModel in .*3: "):
        loading.load(tmp_path)


def test_options_of_other_models(exported):
    with pytest.raises(ValueError, match="`num_steps` is for models of Keras"):
        loading.load(exported, num_steps=[1])
