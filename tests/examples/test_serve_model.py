"""Requests that are answered together."""

import asyncio
import importlib
import sys
import threading

import keras
import numpy as np
import pytest
from scripts import ROOT

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the server has no Keras in it: one backend tests it",
)


@pytest.fixture(scope="module")
def serve_model():
    sys.path.append(str(ROOT / "examples"))
    return importlib.import_module("serve_model")


class Doubling:
    """Doubles `x`, refuses rows with a negative number, and waits for `go` once."""

    def __init__(self):
        self.calls = []
        self.go = threading.Event()

    def __call__(self, signature_name, inputs):
        self.calls.append((signature_name, len(inputs["x"])))
        self.go.wait(10)
        if (inputs["x"] < 0).any():
            raise ValueError(f"negative: {inputs['x'].tolist()}")
        return {"y": 2 * inputs["x"]}


def ask_all(serve_model, requests, max_rows=8):
    """Answers to (signature, rows), all but the first asked while it is computed."""
    run = Doubling()
    batches = serve_model.Batches(run, max_rows)

    async def ask():
        tasks = [
            asyncio.create_task(batches(name, {"x": np.array(rows)}))
            for name, rows in requests
        ]
        await asyncio.sleep(0.05)
        run.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(ask())
    batches.close()
    return answers, run.calls


def test_what_comes_together_is_computed_together(serve_model):
    requests = [("a", [0]), *[("b", [i, 10 * i]) for i in range(1, 4)], ("a", [7])]
    answers, calls = ask_all(serve_model, requests)
    for (_, rows), answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * np.array(rows))
    # Those of b in one pass; those of a were asked before the first began.
    assert calls == [("a", 2), ("b", 6)]


def test_passes_have_at_most_so_many_rows(serve_model):
    requests = [("a", [i] * 3) for i in range(5)] + [("a", list(range(20)))]
    answers, calls = ask_all(serve_model, requests)
    for (_, rows), answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * np.array(rows))
    assert max(rows for _, rows in calls) <= 8
    assert len(calls) < 8


def test_one_at_fault_does_no_harm(serve_model):
    requests = [("a", [1]), ("a", [-1]), ("a", [2]), ("a", 3)]
    answers, _ = ask_all(serve_model, requests)
    assert answers[0]["y"].tolist() == [2]
    assert str(answers[1]) == "negative: [-1]"
    assert answers[2]["y"].tolist() == [4]
    assert isinstance(answers[3], TypeError)  # no rows at all: asked alone


def test_rows_of_other_shapes_are_not_joined(serve_model):
    requests = [("a", [[1, 2]]), ("a", [[1]]), ("a", [[2]])]
    answers, calls = ask_all(serve_model, requests)
    for (_, rows), answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * np.array(rows))
    assert [rows for _, rows in calls] == [1, 2]


def test_a_folder_without_a_saved_model(serve_model, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no SavedModel in"):
            serve_model.SavedModel(folder)
