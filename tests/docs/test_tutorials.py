"""The notebooks of docs/tutorials/: run, cut short, and stored with their outputs."""

import os
import pathlib
import re

import keras
import pytest

nbclient = pytest.importorskip("nbclient", reason="needs the extra `dev`")
nbformat = pytest.importorskip("nbformat", reason="needs the extra `dev`")

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tutorials"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
BACKENDS = ("torch", "jax", "tensorflow")
# What the cell tagged "parameters" holds when a notebook is run here.
SHORT = {
    "accelerators": {"epochs": 3, "batch_sizes": (16, 32)},
    "checkpoints": {"num_samples": 40, "steps_of_fine_tuning": 14},
    "extending": {"training_steps": 4, "num_samples": 500, "backends": []},
    "five_minutes": {"training_steps": 28, "num_samples": 80},
    "measuring": {"num_samples": 640},
    "method": {"training_steps": 50, "num_samples": 500},
    "objectives": {
        "budget": 60,
        "names": ["moment_matching", "flow_matching"],
        "num_samples": 80,
        "step_counts": (1, 2),
    },
    "own_images": {"images_per_class": 50, "num_epochs": 3, "steps_per_epoch": 2},
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shortened(name):
    """A notebook whose parameters, each given a value in it, are those of SHORT."""
    notebook = read(name)
    (cell,) = (c for c in code(notebook) if "parameters" in c.metadata.get("tags", ()))
    assert set(re.findall(r"^(\w+) = ", cell.source, re.MULTILINE)) == set(SHORT[name])
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in SHORT[name].items())
    return notebook


@pytest.mark.slow(reason="runs a notebook")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_as_it_stands(name, tmp_path):
    backend = BACKENDS[NOTEBOOKS.index(name) % len(BACKENDS)]
    if keras.backend.backend() != backend:
        pytest.skip(f"takes its turn with {backend}: each notebook runs once")
    root = FOLDER.parents[1]
    env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root)}
    notebook = shortened(name)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=env)
    assert all(cell.execution_count for cell in code(notebook))


@pytest.mark.one_backend("reads files")
@pytest.mark.parametrize("name", NOTEBOOKS)
class TestStored:
    """What the site shows."""

    def test_all_cells_ran_in_their_order(self, name):
        counts = [cell.execution_count for cell in code(read(name))]
        assert counts == list(range(1, len(counts) + 1))

    def test_outputs_tell_nothing_of_the_machine(self, name):
        text = nbformat.writes(nbformat.from_dict({**read(name), "metadata": {}}))
        assert not re.findall(r"/(?:home|root|tmp|work|Users|usr)/\S*", text)

    def test_no_errors_and_warnings(self, name):
        outputs = [each for cell in code(read(name)) for each in cell.outputs]
        assert outputs
        assert not [o for o in outputs if o.output_type == "error"]
        assert not [o.text for o in outputs if o.get("name") == "stderr"]

    def test_it_runs_where_the_library_is_missing(self, name):
        first = code(read(name))[0].source
        assert '%pip install --quiet "keras_imm[' in first
        assert 'os.environ.setdefault("KERAS_BACKEND", ' in first
        assert first.index("KERAS_BACKEND") < first.index("import keras")
