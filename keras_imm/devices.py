"""What the accelerators of this process can do."""

import re

from keras_imm import backend

# Peak dense FLOP/s by device name and by what multiplies matrices, without sparsity,
# from the vendors: NVIDIA's data sheets of V100, A100, H100, H200 and L4, its white
# paper on the Ada architecture (RTX 4090), and the system architecture pages of Google
# Cloud TPU. The first pattern found in the device's own name decides: a whole word,
# because an A1000 is no A100.
_TERA = 1e12
_PEAKS = {
    r"\bH200 NVL\b": {"half": 835.5, "tensorfloat32": 417.5, "float32": 60},
    r"\bH200\b|\bH100 80GB HBM3\b|\bH100 SXM": {
        "half": 989,
        "tensorfloat32": 494.5,
        "float32": 67,
    },
    r"\bH100 NVL\b": {"half": 835.5, "tensorfloat32": 417.5, "float32": 60},
    r"\bH100 PCIe\b": {"half": 756, "tensorfloat32": 378, "float32": 51},
    r"\bA100\b": {"half": 312, "tensorfloat32": 156, "float32": 19.5},
    r"\bV100-SXM": {"float16": 125, "float32": 15.7},
    r"\bV100-PCIE\b": {"float16": 112, "float32": 14},
    r"\bL4\b": {"half": 121, "tensorfloat32": 60, "float32": 30.3},
    r"\bRTX 4090\b(?! D| Laptop)": {
        "half": 165.2,
        "tensorfloat32": 82.6,
        "float32": 82.6,
    },
    r"\bTPU v4$": {"bfloat16": 275},
    r"\bTPU v5 ?lite\b|\bTPU v5e\b": {"bfloat16": 197},
    r"\bTPU v5$|\bTPU v5p\b": {"bfloat16": 459},
    r"\bTPU v6 ?lite\b|\bTPU v6e\b": {"bfloat16": 918},
}
# "A100-SXM4-40GB MIG 1g.5gb", and "GRID A100-10C" or "NVIDIA L4-6Q" of a virtual GPU
_SLICE = r"MIG|-\d+[ABCQ]$"


def peak_flops(dtype: str, device_name: str | None = None) -> float | None:
    """Peak of dense matrix products on one device.

    Args:
        dtype: What is multiplied: "bfloat16", "float16", "float32" or "float64". For
            "float32" it is the peak of TensorFloat-32 where the backend multiplies
            with it.
        device_name: Name of the device as its vendor writes it. Default:
            `device_kind()`.

    Returns:
        Floating-point operations per second, or None where the device is not known to
        this table, such as a CPU or a slice of a GPU.

    Example:

    ```python
    keras_imm.devices.peak_flops("bfloat16", "NVIDIA A100-SXM4-80GB")  # 312e12
    ```

    Reference:
        - The vendors' data sheets, which for dense products quote half of the numbers
          with sparsity.
    """
    name = device_kind() if device_name is None else device_name
    if re.search(_SLICE, name):
        return None
    peaks = next(
        (peaks for pattern, peaks in _PEAKS.items() if re.search(pattern, name)), {}
    )
    if dtype == "float32" and "tensorfloat32" in peaks and backend.multiplies_in_tf32():
        dtype = "tensorfloat32"
    peak = peaks.get(dtype)
    if peak is None and dtype in ("bfloat16", "float16"):
        peak = peaks.get("half")
    return None if peak is None else peak * _TERA


def memory_bytes() -> int | None:
    """Memory of the first device that the backend computes on.

    Returns:
        Bytes; under JAX those that it lets programs have, 75% of a GPU by default
        (`XLA_PYTHON_CLIENT_MEM_FRACTION`). None where the backend does not say, such
        as for a CPU and under TensorFlow.
    """
    return backend.device_memory()


def device_kind() -> str:
    """What the first device that the backend computes on calls itself.

    Returns:
        Such as "NVIDIA H100 80GB HBM3", "TPU v5 lite" or "cpu".
    """
    return backend.device_kind()
