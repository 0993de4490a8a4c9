"""Which kernel of attention PyTorch takes on a GPU: CUDA tensors without values."""

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy

from keras_imm import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch has two kernels"
)

SHAPE = (2, 5, 3, 8)


@pytest.fixture
def attention(monkeypatch):
    """The module, which has timed nothing; whatever a test has Keras told is undone."""
    from keras.src.backend.common import global_state

    from keras_imm.backend.torch import attention

    monkeypatch.setattr(attention, "_TIMES", {})
    tracker = type(global_state.GLOBAL_STATE_TRACKER)()
    monkeypatch.setattr(global_state, "GLOBAL_STATE_TRACKER", tracker)
    return attention


@pytest.fixture
def timer(attention, monkeypatch):
    """Times by kernel that a test fills in, and the calls: `(kernel, shape, dtype)`."""
    import torch

    times, calls = {}, []

    def milliseconds(name, shape, dtype, device):
        calls.append((name, tuple(shape), dtype))
        made = torch.ones(2, requires_grad=True)
        result = 2.0 * made
        assert type(result) is torch.Tensor and result.requires_grad
        if isinstance(times[name], Exception):
            raise times[name]
        return times[name], [result.detach()]

    monkeypatch.setattr(attention, "_milliseconds", milliseconds)
    return times, calls


@pytest.fixture
def taken(attention, monkeypatch):
    """The first kernel of every attention that was computed, if it was chosen here.

    A build for CUDA would ask the driver about tensors without values, too.
    """
    import torch

    first = []

    def compute(query, *args, **options):
        first.append(torch._C._get_sdp_priority_order()[0])
        return torch.empty_like(query)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", compute)
    return first


def attend(attention, shape=SHAPE, dtype="bfloat16", device="cuda"):
    """Attention of tensors without values, under a trace without gradients."""
    import torch
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        inputs = torch.empty((3, *shape), dtype=getattr(torch, dtype), device=device)
        result = attention.dot_product_attention(*inputs)
    assert (tuple(result.shape), result.dtype) == (shape, inputs.dtype)


def cudnn():
    from torch.nn.attention import SDPBackend

    return int(SDPBackend.CUDNN_ATTENTION)


@pytest.mark.parametrize(
    "flash, other, faster",
    [
        (2.0, 1.0, "cudnn"),
        (1.0, 2.0, "flash"),
        (1.0, 0.99, "flash"),  # by chance
        (RuntimeError("no kernel"), 1.0, "cudnn"),
        (1.0, RuntimeError("no kernel"), "flash"),
        (RuntimeError("no kernel"), RuntimeError("no kernel"), None),
    ],
)
def test_the_faster_kernel_is_taken(attention, timer, taken, flash, other, faster):
    times, calls = timer
    times.update(flash=flash, cudnn=other)
    for _ in range(2):
        attend(attention)
    assert [name for name, _, _ in calls] == ["flash", "cudnn"]
    assert taken == (2 * [cudnn()] if faster == "cudnn" else [])
    (known,) = attention.attention_times()
    assert known["chosen"] == faster
    assert (known["tokens"], known["heads"], known["width"]) == ("5", "3", "8")


def test_a_kernel_that_lacks_memory_loses(attention, timer, taken):
    import torch

    times, _ = timer
    times.update(flash=1.0, cudnn=torch.OutOfMemoryError("of this card"))
    attend(attention)
    assert not taken
    assert attention.attention_times()[0]["cudnn_ms"] == np.inf


def test_timing_leaves_nothing_in_the_graph_that_is_traced(attention, timer, taken):
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        inputs = torch.empty((3, *SHAPE), dtype=torch.bfloat16, device="cuda")
        attention.dot_product_attention(*inputs)
        return 2.0 * x

    times, calls = timer
    times.update(flash=2.0, cudnn=1.0)
    graph = make_fx(function, tracing_mode="fake")(torch.ones(2)).graph
    assert len(calls) == 2 and taken == [cudnn()]
    assert "ones" not in str(graph) and "mul" in str(graph)


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("factor, faster", [(1.01, "cudnn"), (1.1, "flash")])
def test_a_kernel_that_computes_something_else_loses(
    attention, monkeypatch, factor, faster
):
    import torch

    result = torch.linspace(0.0, 1.0, 100)
    seen = {"flash": (2.0, [result] * 2), "cudnn": (1.0, [result, factor * result])}
    monkeypatch.setattr(attention, "_milliseconds", lambda name, *_: seen[name])
    attend(attention)
    assert attention.attention_times()[0]["chosen"] == faster


def test_shapes_are_timed_once_whatever_the_batch(attention, timer):
    times, calls = timer
    times.update(flash=1.0, cudnn=2.0)
    for shape in (SHAPE, (7, *SHAPE[1:]), (2, 6, 3, 8), (2, 5, 3, 16)):
        for dtype in ("bfloat16", "float16"):
            attend(attention, shape, dtype)
    assert len(calls) == len(set(calls)) == 2 * 2 * 3


@pytest.mark.parametrize("device, dtype", [("cpu", "bfloat16"), ("cuda", "float32")])
def test_nothing_is_timed_where_there_is_no_choice(attention, timer, device, dtype):
    attend(attention, device=device, dtype=dtype)
    assert attention.attention_times() == []


def test_shapes_alone_have_no_kernel(attention, timer):
    tensor = keras.KerasTensor(SHAPE)
    assert attention.dot_product_attention(tensor, tensor, tensor).shape == SHAPE
    assert timer[1] == []


def test_a_model_on_a_cpu_times_nothing(attention, timer, make_model, images, labels):
    model = make_model({})
    model.fit(images, labels, batch_size=8, verbose=0)
    model.generate(labels, num_steps=1)
    assert timer[1] == []
    assert backend.attention_times() == []


@pytest.mark.parametrize("name", ["enable", "disable"])
def test_keras_decides_where_it_was_told(attention, timer, taken, name):
    getattr(keras.config, f"{name}_flash_attention")()
    attend(attention)
    assert timer[1] == taken == []


@pytest.mark.parametrize("off, expected", [("flash", [True]), ("cudnn", [])])
def test_a_kernel_that_is_switched_off_is_not_timed(
    attention, timer, taken, monkeypatch, off, expected
):
    import torch

    monkeypatch.setattr(torch.backends.cuda, f"{off}_sdp_enabled", lambda: False)
    attend(attention)
    assert timer[1] == []
    assert [one == cudnn() for one in taken] == expected


def test_the_chosen_kernel_computes_attention(attention, timer, monkeypatch):
    """With the CPU's kernel: cuDNN's comes first of several."""
    import torch

    monkeypatch.setattr(attention, "_kernel", lambda *_: "cudnn")
    rng = np.random.default_rng(0)
    inputs = [torch.tensor(rng.standard_normal(SHAPE)) for _ in range(3)]
    query, key, value = map(numpy, inputs)
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(SHAPE[-1]))
    weights = scores / scores.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    found = numpy(attention.dot_product_attention(*inputs))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_call_forwards_and_backwards_is_timed(attention, monkeypatch):
    """On the CPU, which has FlashAttention and not cuDNN, with a clock of its own."""
    import torch

    class Event:
        clock = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.time = Event.clock

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.time - self.time

    computed, state = attention.scaled_dot_product_attention, torch.get_rng_state()

    def compute(*inputs):
        Event.clock += 3.0
        return computed(*inputs), None

    def refuse(*inputs):
        raise RuntimeError("no such kernel")

    kernels = {"flash": compute, "cudnn": refuse}
    monkeypatch.setattr(attention, "_KERNELS", kernels)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(attention, "_TOKENS", 16)
    key = (*SHAPE[1:], torch.float32, torch.device("cpu"))
    assert attention._time(key) == {"flash": 3.0, "cudnn": np.inf}
    _, results = attention._milliseconds("flash", list(key[:3]), *key[3:])
    batch = 16 // 5
    assert [tuple(one.shape) for one in results] == 4 * [(batch, 3, 5, 8)]
    assert all(float(one.abs().max()) > 0 for one in results)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["flash", "cudnn"])
def test_the_kernels_take_what_is_timed(attention, name):
    """Shapes of PyTorch's own operations, on tensors of a GPU without values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        inputs = [
            torch.empty(2, 3, 16, 72, dtype=torch.bfloat16, device="cuda")
            for _ in range(3)
        ]
        result = attention._KERNELS[name](*inputs)[0]
    assert tuple(result.shape) == (2, 3, 16, 72)
    assert (result.dtype, result.device.type) == (torch.bfloat16, "cuda")
