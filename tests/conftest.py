"""Settings and small models that the tests share."""

import contextlib
import gc
import importlib.util
import os
import pathlib
import sys
import zlib

from xla_flags import xla_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# The tests compile the same few steps many times, in several processes.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ["KERAS_BACKEND"] == "jax":
    os.environ.setdefault("XLA_FLAGS", xla_flags())
# Several processes of tests, and their children, share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm import backend as keras_imm_backend

FRAMEWORKS = ("jax", "tensorflow", "torch")
OF_THEIR_OWN_CHOICE = ("every_backend", "skipif")


def is_installed(framework):
    return importlib.util.find_spec(framework) is not None


@contextlib.contextmanager
def skipped_without_its_framework():
    """What asks for a framework that is not installed is skipped."""
    try:
        yield
    except ModuleNotFoundError as error:
        needed = str(error.name).partition(".")[0]
        if needed not in FRAMEWORKS or is_installed(needed):
            raise
        pytest.skip(f"needs {needed}, which is not installed here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    # TensorFlow's iterators stop the slower the older they are, and what raised holds
    # them. What outlives the test before is not looked at again, which takes no time.
    gc.collect()
    gc.freeze()
    # Shuffles and unseeded models are the same whichever tests ran before.
    keras.utils.set_random_seed(0)
    with skipped_without_its_framework():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with skipped_without_its_framework():
        return (yield)


def pytest_addoption(parser):
    parser.addoption(
        "--on-every-backend",
        action="store_true",
        help="run what is left to another backend, too",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run what takes longer than what it adds is worth on every change, too",
    )


def pytest_collection_modifyitems(config, items):
    if not is_installed("tensorflow"):
        reason = "exports are written by TensorFlow, which is not installed here"
        for item in items:
            if "serving" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))
    for item in items:
        mark = item.get_closest_marker("long")
        if mark and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]}: needs --long"))
        mark = item.get_closest_marker("one_backend")
        chosen = mark.kwargs.get("backend", "torch") if mark else None
        if mark is None and not config.getoption("--on-every-backend"):
            mark, chosen = backend_of_its_name(item)
        if mark and keras.backend.backend() != chosen:
            reason = f"{mark.args[0]}: tested under {chosen}"
            item.add_marker(pytest.mark.skip(reason=reason))


def backend_of_its_name(item):
    """The mark `any_backend` of a test, or None, and the backend that has the test."""
    mark = item.get_closest_marker("any_backend")
    if any(map(item.get_closest_marker, OF_THEIR_OWN_CHOICE)):
        mark = None
    return mark, FRAMEWORKS[zlib.crc32(item.nodeid.encode()) % len(FRAMEWORKS)]


@pytest.fixture(scope="session")
def backend() -> str:
    return keras.backend.backend()


@pytest.fixture(scope="session", autouse=True)
def full_precision():
    """Tests compare digits: on a GPU TensorFloat-32 would leave three of them."""
    with keras_imm_backend.full_precision():
        yield


@pytest.fixture(scope="session", autouse=True)
def tensors_have_to_be_converted(backend):
    """NumPy takes a tensor from `convert_to_numpy` alone, as it would from a GPU."""
    if backend != "torch":
        yield
        return
    import torch

    own = torch.Tensor.__array__
    allowed = os.path.join("keras", "src", "backend", "torch", "core.py")

    def refuse_others(tensor, *arguments, **options):
        if sys._getframe(1).f_code.co_filename.endswith(allowed):
            return own(tensor, *arguments, **options)
        raise TypeError("A CUDA tensor is no array: use keras.ops.convert_to_numpy")

    torch.Tensor.__array__ = refuse_others
    yield
    torch.Tensor.__array__ = own


@pytest.fixture
def set_tensorfloat32(backend):
    """Switches TensorFloat-32, in products and convolutions, as a user does."""
    if backend == "jax":
        import jax

        with contextlib.ExitStack() as stack:
            names = {True: "tensorfloat32", False: "highest"}
            yield lambda on: stack.enter_context(
                jax.default_matmul_precision(names[on])
            )
    elif backend == "tensorflow":
        import tensorflow as tf

        before = tf.config.experimental.tensor_float_32_execution_enabled()
        yield tf.config.experimental.enable_tensor_float_32_execution
        tf.config.experimental.enable_tensor_float_32_execution(before)
    else:
        import torch

        def switch(on):
            torch.set_float32_matmul_precision("high" if on else "highest")
            torch.backends.cudnn.allow_tf32 = on

        yield switch
        switch(False)


@pytest.fixture
def make_model():
    """Makes a small conditional IMM on 4x4 images, with random non-zero outputs."""

    def make(compile_options=None, dropout=0.0, num_classes=3, seed=0, **options):
        model = keras_imm.IMM(
            small_dit(num_classes=num_classes, dropout=dropout), seed=seed, **options
        )
        rng = np.random.default_rng(7)
        for v in model.trainable_variables:
            v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
        if compile_options is not None:
            optimizer = compile_options.pop("optimizer", None) or keras.optimizers.Adam(
                1e-2, epsilon=1e-8, use_ema=True, ema_momentum=0.9
            )
            model.compile(optimizer=optimizer, **compile_options)
        return model

    return make


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(1)
    return 0.5 * rng.standard_normal((32, 4, 4, 1)).astype("float32")


@pytest.fixture
def labels() -> np.ndarray:
    return (np.arange(32) % 3).astype("int32")
