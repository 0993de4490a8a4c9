import subprocess
import sys

OPTIONAL = {"keras_cv", "safetensors"}


def test_importing_latents_imports_nothing_optional():
    code = f"import sys, keras_imm.latents; print({OPTIONAL} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
