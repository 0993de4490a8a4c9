"""The exporting process itself, in this one: where it ends, and what it says."""

import json

import pytest
from gaussian_flow import gaussian_model
from served_models import on_tensorflow

from keras_imm.samplers import SamplingPlan
from keras_imm.serving import child, child_process, flow_map_file
from keras_imm.serving.settings import Settings


@pytest.fixture
def request_file(tmp_path):
    model = gaussian_model()
    settings = Settings(SamplingPlan(), num_steps=(2,), warmup=False).checked()
    settings = settings.completed(model.objective, model.flow)
    values = [v.value for v in model.flow.variables]
    (tmp_path / "flow_map").mkdir()
    (tmp_path / "served").mkdir()
    flow_map_file.save(tmp_path / "flow_map", model.flow, values)

    def write(**changes):
        request = {
            "task": "saved_model",
            "flow_map": str(tmp_path / "flow_map"),
            "path": str(tmp_path / "served"),
            "settings": settings.get_config(),
            "modules": ["gaussian_flow"],
            "other_modules": ["no_such_module"],
            "options": {},
        }
        path = tmp_path / "request.json"
        path.write_text(json.dumps(request | changes))
        return str(path)

    return write


@on_tensorflow
def test_success(request_file, tmp_path, capsys):
    assert child.main(request_file()) == 0
    assert (tmp_path / "served" / "saved_model.pb").exists()
    assert child_process.warned([]) in capsys.readouterr().out


def test_failure_is_a_status_and_a_line(request_file, capsys):
    assert child.main(request_file(modules=["no_such_module"])) == 1
    said = capsys.readouterr()
    error = ModuleNotFoundError("No module named 'no_such_module'")
    assert child_process.failed(error) in said.out
    assert "Traceback" in said.err
