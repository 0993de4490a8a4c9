"""Peaks of accelerators, by the names that they give themselves."""

import pytest

from keras_imm import devices


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "float16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200 NVL", "bfloat16", 835.5),
        ("Tesla V100-PCIE-32GB", "float16", 112),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        # A V100 has no bfloat16, a TPU no quoted float32; none is better than wrong.
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("TPU v4", "float32", None),
        ("NVIDIA H100 80GB HBM3", "float64", None),
        ("NVIDIA RTX A1000 Laptop GPU", "bfloat16", None),
        ("NVIDIA A10", "bfloat16", None),
        ("NVIDIA H100 96GB HBM3", "bfloat16", None),
        ("NVIDIA GH200 480GB", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA L40S", "bfloat16", None),
        ("Tesla V100S-PCIE-32GB", "float16", None),
        ("NVIDIA GeForce RTX 4090 D", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("GRID A100-10C", "bfloat16", None),
        ("NVIDIA L4-6Q", "bfloat16", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks(name, dtype, tera):
    peak = devices.peak_flops(dtype, name)
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))


def test_these_tests_run_on_a_device_without_a_peak():
    assert devices.device_kind().lower() == "cpu"
    assert devices.peak_flops("float32") is None


def test_float32_has_the_peak_of_what_multiplies(set_tensorfloat32):
    set_tensorfloat32(True)
    assert devices.peak_flops("float32", "NVIDIA A100-SXM4-80GB") == 156e12
    set_tensorfloat32(False)
    assert devices.peak_flops("float32", "NVIDIA A100-SXM4-80GB") == 19.5e12


def test_a_cpu_has_no_memory_of_its_own():
    if devices.device_kind() != "cpu":
        pytest.skip("an accelerator says how much it has")
    assert devices.memory_bytes() is None
