"""The benchmarks' clock: it stops when the device is done and its results are read."""

import ast
import pathlib
import types

import keras
import kernel_times
import measuring
import numpy as np
import pytest

import keras_imm

BENCHMARKS = pathlib.Path(measuring.__file__).parent


class Result:
    """What a call returns before the device has computed it."""

    def __init__(self, happened, value=0.5):
        self.happened = happened
        self.value = value

    def block_until_ready(self):
        self.happened.append("waited")
        return self

    def __array__(self, dtype=None, copy=None):
        self.happened.append("read")
        if isinstance(self.value, Exception):
            raise self.value
        return np.asarray(self.value, dtype)


@pytest.fixture
def happened(monkeypatch):
    """What was done, in its order, the clock's readings included."""
    happened = []

    def perf_counter():
        happened.append("clock")
        return float(len(happened))

    clock = types.SimpleNamespace(perf_counter=perf_counter)
    monkeypatch.setattr(measuring, "time", clock)
    return happened


def test_a_call_is_timed_until_its_results_are_read(happened):
    def call(first, second):
        happened.append(f"called with {first} and {second}")
        return {"loss": Result(happened)}

    assert measuring.seconds(call, 1, 2) == 4.0
    assert happened == ["clock", "called with 1 and 2", "waited", "read", "clock"]


def test_all_results_are_waited_for_before_the_first_is_read(happened):
    arrays = measuring.wait([Result(happened, 1.0), (Result(happened, 2.0),)], 3.0)
    assert happened == ["waited", "waited", "read", "read"]
    assert [float(a) for a in arrays] == [1.0, 2.0, 3.0]


def test_an_epoch_is_timed_until_its_loss_is_read(happened):
    times = measuring.EpochTimes()
    times.on_train_begin()
    for epoch in range(2):
        times.on_epoch_begin(epoch)
        times.on_epoch_end(epoch, {"loss": Result(happened)})
    assert happened == 2 * ["clock", "waited", "read", "clock"]
    assert times.seconds == [3.0, 3.0]


def test_what_the_device_failed_in_fails_the_benchmark(happened):
    """Keras's `fit` leaves such a loss in its logs and goes on."""
    failed = Result(happened, RuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        measuring.seconds(lambda: failed)
    times = measuring.EpochTimes()
    times.on_train_begin()
    times.on_epoch_begin(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        times.on_epoch_end(0, {"loss": failed})
    assert times.seconds == []


@pytest.mark.parametrize("value", [np.nan, np.inf, [1.0, -np.inf]])
def test_what_is_not_finite_fails_the_benchmark(happened, value):
    with pytest.raises(FloatingPointError, match="not finite"):
        measuring.wait(np.array(value))
    with pytest.raises(FloatingPointError, match="not finite"):
        measuring.seconds(lambda: Result(happened, value))


@pytest.mark.parametrize("accelerator", [True, False])
def test_an_accelerator_is_waited_for(happened, backend, accelerator, monkeypatch):
    if backend == "torch":
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
        monkeypatch.setattr(
            torch.cuda, "synchronize", lambda: happened.append("synchronized")
        )
    elif backend == "tensorflow":
        import tensorflow as tf

        monkeypatch.setattr(
            tf.config, "list_physical_devices", lambda _: ["GPU:0"] * accelerator
        )
        monkeypatch.setattr(
            tf.test.experimental,
            "sync_devices",
            lambda: happened.append("synchronized"),
        )
    else:
        pytest.skip("JAX has no call for the whole device: its arrays are waited for")
    measuring.seconds(lambda: Result(happened))
    synchronized = ["synchronized"] * accelerator
    assert happened == ["clock", "waited", *synchronized, "read", "clock"]


def test_losses_of_fit_are_read(make_model, images, labels):
    model = make_model({})
    times = measuring.EpochTimes()
    history = model.fit(images, labels, epochs=3, verbose=0, callbacks=[times])
    history = history.history["loss"]
    assert len(times.seconds) == 3 and min(times.seconds) > 0
    np.testing.assert_array_equal(measuring.wait(history), history)


def test_more_than_the_peak_is_an_error(monkeypatch):
    flags = types.SimpleNamespace(model="digits", batch_size=128, dtype="float32")
    monkeypatch.setattr(measuring, "FLAGS", flags)
    forward = keras_imm.flops.multiply_adds(measuring.build().backbone)
    flops = 8 * 128 * forward  # two forward passes and a backward, a product is two
    monkeypatch.setattr(keras_imm.devices, "peak_flops", lambda dtype: flops / 0.5)
    assert measuring.utilisation(1.0) == pytest.approx(0.5)
    with pytest.raises(RuntimeError, match=r"250.00 ms a step would be 200%"):
        measuring.utilisation(0.25)


# Files that read a clock themselves: nothing of a device is computed between.
CLOCKS = {
    "convert_memory.py": "a process, from its start to its end",
    "hostile_checkpoints.py": "files are refused before anything is computed",
    "kill_and_resume.py": "processes, and how long to wait for them",
    "measuring.py": "the clock of the others",
    "mutated_files.py": "processes that read files and compute nothing",
    "onnx_large.py": "a file that is written, read and run by others",
    "recipe_search.py": "processes, and when to start no more of them",
    "server_day.py": "a server, and how long it is asked",
    "server_load.py": "a server's answers, which have been read",
    "train_fashion_classifier.py": "training, after which accuracies are read",
}
# Files that read one after `measuring.wait` or `measuring.finish`.
AFTER_WAITING = {
    "accelerator.py": "a whole stage, whose figures have been read",
    "build_xl.py": "weights, which are not all copied to the host",
    "flow_matching_digits.py": "training that ends by the clock",
    "input_pipeline.py": "steps inside an epoch; and data, read by the processor",
    "runtimes.py": "single calls; and other runtimes, in processes of their own",
}


@pytest.mark.one_backend("reads source files")
def test_every_other_benchmark_takes_time_by_these():
    reading = set()
    for path in BENCHMARKS.rglob("*.py"):
        tree = ast.parse(path.read_text())
        called = {
            ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)
        }
        if called & {"time.perf_counter", "time.monotonic", "time.time"}:
            reading.add(path.name)
        if path.name in AFTER_WAITING:
            assert called & {"measuring.wait", "measuring.finish"}, path
    assert reading == {*CLOCKS, *AFTER_WAITING}


def event(name, device, microseconds, user=False):
    """One of `key_averages()`: of a kernel, or of the operation that starts it."""
    return types.SimpleNamespace(
        key=name,
        device_type=f"DeviceType.{device}",
        self_cpu_time_total=1.0,
        self_device_time_total=microseconds,
        is_user_annotation=user,
    )


def test_kernels_of_pytorch_are_counted_once():
    events = [
        event("aten::mm", "CPU", 30.0),
        event("nvjet_sm90_tst_128x256", "CUDA", 30.0),
        event("flash_fwd_kernel<96>", "CUDA", 12.0),
        event("ProfilerStep*", "CUDA", 42.0, user=True),
        event("cudaLaunchKernel", "CPU", 0.0),
    ]
    times = kernel_times.of_torch(events, "cuda")
    assert times == {"nvjet_sm90_tst_128x256": 30.0, "flash_fwd_kernel<96>": 12.0}
    kernel_times.check(times)
    assert set(kernel_times.of_torch(events, "cpu")) == {"aten::mm", "cudaLaunchKernel"}


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's profiler")
def test_events_of_pytorch_have_these_attributes():
    import torch

    with torch.profiler.profile() as profiler:
        torch.ones(3, 3) @ torch.ones(3, 3)
    times = kernel_times.of_torch(profiler.key_averages(), "cpu")
    assert times["aten::mm"] > 0


def trace(lines):
    """Events of a Perfetto trace: {thread's name: [(event, microseconds)]}."""
    events = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}}
    ]
    for thread, (line, durations) in enumerate(lines.items()):
        common = {"pid": 1, "tid": thread}
        name = {"name": "thread_name", "args": {"name": line}}
        events.append({"ph": "M", **common, **name})
        events += [
            {"ph": "X", **common, "name": name, "dur": microseconds}
            for name, microseconds in durations
        ]
    return events


def test_kernels_of_jax_are_those_of_the_streams():
    events = trace(
        {
            "Stream #13(Compute)": [
                ("loop_add_fusion_12", 5.0),
                ("loop_add_fusion", 1.0),
                ("void cutlass::Kernel<gemm_128x128>", 30.0),
                ("nvjet_hsh_128x256", 20.0),
            ],
            "Stream #14(MemcpyH2D)": [("MemcpyH2D", 2.0)],
            "python": [("PjitFunction(step)", 900.0)],
            "XLA Ops": [("fusion.3", 7.0)],
        }
    )
    times = kernel_times.of_jax(events, "gpu")
    assert times == {
        "loop_add_fusion": 6.0,
        "void cutlass::Kernel<gemm_128x128>": 30.0,
        "nvjet_hsh_128x256": 20.0,
        "MemcpyH2D": 2.0,
    }
    kernel_times.check(times)
    assert kernel_times.of_jax(events, "tpu") == {"fusion": 7.0}


@pytest.mark.parametrize("times", [{}, {"MemcpyH2D": 3.0, "Memset (Device)": 1.0}])
def test_a_profile_of_copies_alone_is_an_error(times):
    """It is what remains where nobody waited for the device."""
    with pytest.raises(RuntimeError, match="no kernels but copies"):
        kernel_times.check(times)
