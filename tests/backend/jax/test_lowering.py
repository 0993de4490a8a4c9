"""Programs for TPUs and GPUs, lowered on a CPU, read as text."""

import keras
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("only JAX lowers for other platforms", allow_module_level=True)

from backend.jax import lowered
from backend.jax.stablehlo import Program, dtypes
from backend.several_devices.children import seen_by

pytestmark = pytest.mark.slow("traces train steps")

ACCELERATORS = ("tpu", "cuda")
STEPS = ("step", "accumulated", "rematerialized", "sharded")
KINDS = (*STEPS, "sampler")
BARRIER = "stablehlo.optimization_barrier"

# Under mixed_bfloat16 all products take bfloat16 but these two of each block's backward
# pass. JAX's attention adds up its scores in float32: their gradient, float32 as the
# softmax is, is multiplied by the keys and by the queries.
GRADIENT_OF_SCORES = "tensor<{rows}x2x4x1x4xf32>"
KEYS_AND_QUERIES = ("tensor<{rows}x4x2x1x8xbf16>", "tensor<{rows}x4x2x8xbf16>")


def in_float32(kind):
    rows = lowered.BATCH // (2 if kind == "accumulated" else 1)
    return {
        f"({GRADIENT_OF_SCORES}, {other})".format(rows=rows)
        for other in KEYS_AND_QUERIES
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return seen_by(
        "jax",
        "jax/lowering_child.py",
        tmp_path_factory.mktemp("lowered"),
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )


@pytest.fixture(scope="module")
def program(request):
    """From kind, policy and platform to the `Program`."""

    def read(kind, policy, platform):
        if kind == "sharded":
            texts = request.getfixturevalue("sharded")
            return Program(texts[policy][platform])
        return Program(lowered.program(kind, policy, platform))

    return read


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_take_bfloat16_but_for_a_named_list(program, kind, platform):
    found = program(kind, "mixed_bfloat16", platform).products()
    others = {
        signature.split(" -> ")[0]: count
        for signature, count in found.items()
        if dtypes(signature) != {"bf16"}
    }
    named = set() if kind == "sampler" else in_float32(kind)
    assert others == dict.fromkeys(named, lowered.DEPTH)
    # 6 in a block, 2 in each embedding of a time, 3 around the blocks
    assert sum(found.values()) >= 6 * lowered.DEPTH + 2 * 2 + 3


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_take_float32_under_float32(program, kind, platform):
    found = program(kind, "float32", platform).products()
    assert {dtype for signature in found for dtype in dtypes(signature)} == {"f32"}


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_norms_are_float32(program, kind, platform):
    program = program(kind, "mixed_bfloat16", platform)
    roots = program.of_kind("stablehlo.rsqrt")
    passes = 1 if kind == "sampler" else 2
    assert len(roots) >= passes * (2 * lowered.DEPTH + 1)
    for root in roots:
        before = program.before(root, until="stablehlo.convert")
        assert any(one.kind == "stablehlo.reduce" for one in before)
        assert only_float32([root, *before])


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_softmax_is_float32(program, kind, platform):
    program = program(kind, "mixed_bfloat16", platform)
    normalized = [
        one
        for one in program.of_kind("stablehlo.exponential")
        if any(use.kind == "stablehlo.reduce" for use in program.uses(one))
    ]
    passes = 1 if kind == "sampler" else 2
    assert len(normalized) >= passes * lowered.DEPTH
    for one in normalized:
        before = program.before(one, until="stablehlo.dot_general")
        assert any("stablehlo.maximum" in step.text for step in before)
        assert only_float32([one, *before, *program.uses(one)])


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("kind", STEPS)
def test_the_loss_is_float32(program, kind, platform):
    """From the network's outputs to the kernel, for each of the three sums of pairs.

    Two more kernels are those whose slopes the share of interaction is made of.
    """
    program = program(kind, "mixed_bfloat16", platform)
    kernels = program.of_kind("stablehlo.exponential_minus_one")
    assert len(kernels) == 5
    for kernel in kernels:
        before = program.before(kernel, until="stablehlo.convert")
        assert {"stablehlo.sqrt", "stablehlo.reduce", "stablehlo.subtract"} <= {
            one.kind for one in before
        }
        assert only_float32([kernel, *before])


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_nothing_of_the_host_is_left(program, kind, policy, platform):
    """No callback, no barrier for CPUs, and no choice between platforms."""
    program = program(kind, policy, platform)
    assert program.custom_calls() <= {"Sharding", "cu_threefry2x32_ffi"}
    assert program.count("stablehlo.case") == 0
    # JAX has one around what it recomputes, on every platform.
    recomputed = lowered.DEPTH if kind == "rematerialized" else 0
    assert program.count(BARRIER) == recomputed


def test_a_cpu_has_the_barriers(program):
    passes = 3  # of the target, of the loss, and backwards
    barriers = program("step", "float32", "cpu").count(BARRIER)
    assert barriers == passes * (2 * lowered.DEPTH + 1)


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_accumulation_and_sampling_are_one_loop(program, platform):
    for kind, loops in (("step", 0), ("accumulated", 1), ("sampler", 1)):
        assert program(kind, "float32", platform).count("stablehlo.while") == loops


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_a_mesh_stays_in_the_program(program, platform):
    text = program("sharded", "mixed_bfloat16", platform).text
    assert "mhlo.num_partitions = 8" in text
    assert f"tensor<{lowered.BATCH}x4x4x1xf32> {{sdy.sharding = #sdy.sharding<@" in text


def only_float32(operations):
    """Whether there is float32 among the floats of operations, and nothing else."""
    return {dtype for one in operations for dtype in dtypes(one.signature)} == {"f32"}
