"""Optimizer steps in few calls of PyTorch, beside Keras's own."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the passes are PyTorch's"
)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.Adam(1e-2, beta_1=0.8, beta_2=0.95, use_ema=True),
        lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(1e-2, 8),
            weight_decay=0.1,
            clipnorm=0.01,
            epsilon=1e-4,
            use_ema=True,
            ema_momentum=0.7,
        ),
        lambda: keras.optimizers.Adam(1e-2, amsgrad=True, use_ema=True),
        lambda: keras.optimizers.Nadam(1e-2, use_ema=True),
        lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.0, global_clipnorm=0.1),
        lambda: keras.optimizers.Adam(
            1e-2, beta_2=0.95, clipvalue=0.01, use_ema=True, ema_momentum=0.9999
        ),
        lambda: keras_imm.optimizers.RAdam(1e-1, use_ema=True, global_clipnorm=10.0),
        lambda: keras_imm.optimizers.RAdam(
            keras.optimizers.schedules.CosineDecay(1e-2, 12),
            beta_1=0.8,
            beta_2=0.99,
            weight_decay=0.1,
            epsilon=1e-4,
        ),
        lambda: keras_imm.optimizers.RAdam(1e-2, beta_2=0.5),  # never rectified
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(1e-2, beta_2=0.95, use_ema=True), initial_scale=8.0
        ),
    ],
)
@pytest.mark.parametrize("transposed", ["nothing", "gradients", "weights"])
def test_fused_updates_are_those_of_keras(make_optimizer, transposed):
    """Nine steps on the same gradients, beside Keras's own code.

    It computes 1 - beta_2^t in float32, with few digits left where beta_2 is near 1.
    """
    import torch

    from keras_imm.backend.torch.optimizer_passes import fused_updates

    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype("float32") for shape in ((3, 4), (5,))]
    if transposed == "weights":
        start = [np.asfortranarray(v) for v in start]
    ours, theirs = ([keras.Variable(v) for v in start] for _ in range(2))
    optimizers = make_optimizer(), make_optimizer()
    for step in range(9):
        gradients = [
            ops.convert_to_tensor(
                10.0 ** -(step % 6) * rng.standard_normal(v.shape), "float32"
            )
            for v in start
        ]
        if transposed == "gradients":
            gradients = [g.T.contiguous().T if g.ndim == 2 else g for g in gradients]
        with torch.no_grad():
            with fused_updates(optimizers[0]):
                optimizers[0].apply(list(gradients), ours)
            optimizers[1].apply(list(gradients), theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=2e-6, atol=1e-7
            )
        states = (optimizer.variables for optimizer in optimizers)
        for a, b in zip(*states, strict=True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=2e-6, atol=1e-9
            )
    moved = np.abs(ops.convert_to_numpy(ours[0]) - start[0]).max()
    assert moved > 1e-2


def test_adam_and_averages_are_few_calls():
    """Not one for each of the variables."""
    import torch

    from keras_imm.backend.torch.optimizer_passes import fused_updates

    variables = [keras.Variable(np.ones((3,), "float32")) for _ in range(8)]
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True)
    optimizer.build(variables)
    gradients = [ops.ones((3,)) for _ in variables]
    counts = []
    for context in (contextlib.nullcontext(), fused_updates(optimizer)):
        with torch.profiler.profile() as profile, torch.no_grad(), context:
            optimizer.apply(list(gradients), variables)
        counts.append({event.key: event.count for event in profile.key_averages()})
    own, fused = counts
    assert fused["aten::_fused_adam_"] == 1
    assert "aten::_fused_adam_" not in own
    assert fused.get("aten::sqrt", 0) == 0 < own["aten::sqrt"]


@contextlib.contextmanager
def waits():
    """The operations that ask for a tensor's value, and so wait for the device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.Adam(1e-2, use_ema=True, global_clipnorm=1.0),
        lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(1e-2, 8),
            weight_decay=0.1,
            clipnorm=1.0,
            use_ema=True,
        ),
        lambda: keras_imm.optimizers.RAdam(1e-2, use_ema=True, weight_decay=0.1),
    ],
)
def test_steps_do_not_wait_for_the_device(make_optimizer):
    """But for the first, and where others have changed the number of steps."""
    import torch

    from keras_imm.backend.torch.optimizer_passes import fused_updates

    variables = [keras.Variable(np.ones((3,), "float32")) for _ in range(2)]
    optimizer = make_optimizer()
    optimizer.build(variables)

    def step():
        with waits() as seen, torch.no_grad(), fused_updates(optimizer):
            optimizer.apply([torch.ones(3) for _ in variables], variables)
        return len(seen)

    assert step() > 0  # they are seen
    assert [step() for _ in range(8)] == [0] * 8
    optimizer.iterations.assign(100)
    assert step() > 0
    assert step() == 0
    assert int(optimizer.iterations) == 102


def test_steps_that_others_count_are_seen():
    """A restored number of steps counts: bias corrections, averages and RAdam's."""
    import torch

    from keras_imm.backend.torch.optimizer_passes import fused_updates

    for kind in (keras.optimizers.Adam, keras_imm.optimizers.RAdam):
        results = []
        for context in (fused_updates, lambda _: contextlib.nullcontext()):
            variable = keras.Variable(np.ones((3,), "float32"))
            optimizer = kind(1e-1, use_ema=True)
            optimizer.build([variable])
            for count in (None, None, 50, 0, 7):
                if count is not None:
                    optimizer.iterations.assign(count)
                with torch.no_grad(), context(optimizer):
                    optimizer.apply([torch.ones(3)], [variable])
                results.append(ops.convert_to_numpy(variable).copy())
        np.testing.assert_allclose(results[:5], results[5:], rtol=2e-5)


@pytest.mark.parametrize("steps", [100_000, 3_000_000])
def test_radam_goes_on_for_ever(steps):
    """beta_2^t is then 0, and RAdam's length that of the limit."""
    import torch

    from keras_imm.backend.torch.optimizer_passes import fused_updates

    results = []
    for context in (fused_updates, lambda _: contextlib.nullcontext()):
        variable = keras.Variable(np.ones((3,), "float32"))
        optimizer = keras_imm.optimizers.RAdam(1e-1, beta_2=0.99)
        optimizer.build([variable])
        optimizer.iterations.assign(steps)
        with torch.no_grad(), context(optimizer):
            optimizer.apply([torch.ones(3)], [variable])
        results.append(ops.convert_to_numpy(variable))
    assert np.all(results[0] < 1)
    np.testing.assert_allclose(*results, rtol=2e-5)


def test_steps_are_counted_anew_on_request():
    """A broadcast writes past what PyTorch counts as a change."""
    import torch

    from keras_imm.backend.torch.optimizer_passes import forget_steps, fused_updates

    results = []
    for context in (fused_updates, lambda _: contextlib.nullcontext()):
        variable = keras.Variable(np.ones((3,), "float32"))
        optimizer = keras.optimizers.Adam(1e-1)
        optimizer.build([variable])
        for _ in range(2):
            with torch.no_grad(), context(optimizer):
                optimizer.apply([torch.ones(3)], [variable])
            optimizer.iterations.value.data.fill_(40)
            forget_steps(optimizer)
        results.append(ops.convert_to_numpy(variable))
    np.testing.assert_allclose(*results, rtol=2e-5)


def test_an_optimizer_is_as_it_was_after_a_step_that_failed():
    from keras_imm.backend.torch.optimizer_passes import fused_updates

    optimizer = keras.optimizers.Adam(1e-2)
    before = dict(vars(optimizer))
    with pytest.raises(KeyboardInterrupt), fused_updates(optimizer):
        raise KeyboardInterrupt
    assert vars(optimizer).keys() == before.keys()


@pytest.mark.slow("trains or builds for seconds")
def test_a_unet_trains_as_with_keras_own_adam(images, monkeypatch):
    """Gradients of convolutions lie in memory in another order than their weights."""
    from keras_imm.backend.torch import train_step

    def make():
        keras.utils.set_random_seed(0)
        backbone = keras_imm.backbones.UNet(
            image_shape=(4, 4, 1),
            model_channels=8,
            channel_mult=(1,),
            num_blocks=1,
            attention_resolutions=(),
            dropout=0.0,
        )
        model = keras_imm.IMM(backbone)
        model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-6))
        return model

    def weights_of(model):
        return [ops.convert_to_numpy(v) for v in model.weights]

    def fit(model):
        model.fit(images, batch_size=8, verbose=0, shuffle=False)
        return weights_of(model)

    before = weights_of(make())
    ours = fit(make())
    monkeypatch.setattr(
        train_step, "fused_updates", lambda optimizer: contextlib.nullcontext()
    )
    theirs = fit(make())
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    moved = max(np.abs(a - b).max() for a, b in zip(before, ours, strict=True))
    assert moved > 2e-3
