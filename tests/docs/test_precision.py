"""What docs/precision.md says of the frameworks, asked of the framework in use."""

import json
import pathlib
import re

import pytest
from scripts import run_code

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "precision.md"
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}


def rows(backend):
    """Cells of the rows whose first begins with the framework's name in bold."""
    lines = PAGE.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0].startswith(f"**{NAMES[backend]}**")]


@pytest.mark.slow("a child process")
def test_defaults_and_settings_are_those_of_the_framework(backend):
    """In a fresh process: of products, and under PyTorch of convolutions too."""
    stated = [row for row in rows(backend) if "`" not in row[1]]
    settings = [row for row in rows(backend) if "`" in row[1]]
    assert len(stated) == len(settings) == (2 if backend == "torch" else 1)
    lower, full = (
        [re.fullmatch("`(.*)`", row[column]).group(1) for row in settings]
        for column in (1, 2)
    )
    code = f"""
import json
import {backend if backend != "tensorflow" else "tensorflow as tf"}
from keras_imm import backend
def asked():
    answers = [backend.multiplies_in_tf32()]
    if {backend == "torch"}:
        answers.append(torch.backends.cudnn.conv.fp32_precision == "tf32")
    return answers
seen = [asked()]
for commands in ({lower!r}, {full!r}):
    for command in commands:
        exec(command)
    seen.append(asked())
with backend.full_precision():
    seen.append(asked())
print(json.dumps(seen))
"""
    result = run_code(code, "tests")
    assert result.returncode == 0, result.stderr
    default, after_lower, after_full, inside = json.loads(
        result.stdout.splitlines()[-1]
    )
    assert default == ["TensorFloat-32" in row[1] for row in stated]
    assert all(after_lower) and not any(after_full) and not any(inside)
