"""Which kernels ran, and for how long: read from what the profilers recorded."""

import collections
import re

COPIES = re.compile("^(memcpy|memset)", re.IGNORECASE)
ATTENTION = re.compile("flash|fmha|attention|sdpa|cudnn_generated", re.IGNORECASE)


def of_torch(averages, device):
    """Microseconds by kernel, or by operation on a CPU.

    Args:
        averages: What `torch.profiler.profile.key_averages()` returns. On a GPU there
            are events of the kernels themselves beside those of the operations that
            launched them, which carry the same time once more.
        device: "cpu" or "cuda".

    Returns:
        A counter.
    """
    times = collections.Counter()
    for event in averages:
        kind = str(event.device_type).rpartition(".")[2].lower()
        if kind != device or getattr(event, "is_user_annotation", False):
            continue
        on_cpu = device == "cpu"
        times[event.key] += (
            event.self_cpu_time_total if on_cpu else event.self_device_time_total
        )
    return times


def of_jax(events, platform):
    """Microseconds by kernel, or by what XLA calls a thunk on a CPU.

    Args:
        events: `traceEvents` of JAX's Perfetto trace.
        platform: `jax.default_backend()`: "cpu", "gpu" or "tpu".

    Returns:
        A counter.
    """
    names = {
        (e["pid"], e.get("tid")): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e["name"] in ("process_name", "thread_name")
    }
    line = {"cpu": "XLAEigen", "gpu": "Stream", "tpu": "XLA Ops"}[platform]
    times = collections.Counter()
    for e in events:
        if e.get("ph") != "X" or line not in names.get((e["pid"], e["tid"]), ""):
            continue
        if platform == "cpu" and "::" in e["name"]:  # the thread pool's own
            continue
        times[re.sub(r"([._]\d+)+$", "", e["name"])] += e["dur"]
    return times


def check(times):
    """Raises unless something was computed while the profiler looked.

    Args:
        times: Microseconds by kernel.

    Raises:
        RuntimeError: If there are no kernels but copies.
    """
    if not any(time for name, time in times.items() if not COPIES.search(name)):
        raise RuntimeError(
            "The profile holds no kernels but copies: "
            f"{', '.join(times) or 'it is empty'}"
        )
