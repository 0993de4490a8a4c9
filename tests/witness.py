"""The models, data and requests of the files in data/witness.

`data/make_witness.py` wrote those files with them and `test_witness.py` reads them, so
that a change here makes the files say something else than they were asked.
"""

import importlib
import pathlib

import keras
import numpy as np
from keras import ops
from small_dit import small_dit

import keras_imm

ROOT = pathlib.Path(__file__).parent / "data/witness"
BACKENDS = ("tensorflow", "jax", "torch")
EPOCHS, KILLED_IN_EPOCH = 4, 2  # of the run that is cut, counted from 0

GUIDANCE = 1.5
LABELS = np.arange(4, dtype="int32")  # the last is the null label
NOISE = np.random.default_rng(2).normal(size=(4, 4, 4, 1)).astype("float32")

# Arguments of `generate`. These are given noise and take no more: any backend's answer.
FROM_NOISE = {
    "uniform_1": {"num_steps": 1},
    "uniform_2": {"num_steps": 2},
    "edm_3": {"num_steps": 3, "time_grid": "edm"},
    "eta_2": {"time_grid": [1.4]},
    "uniform_2_raw": {"num_steps": 2, "weights": "raw"},
}
GUIDED = {"guided_2": {"num_steps": 2, "guidance_scale": GUIDANCE}}
# These draw numbers, which are a backend's own.
DRAWN = {
    "seed_3": {"num_steps": 2, "seed": 3},
    "restart_3": {"num_steps": 3, "sampler": "restart", "seed": 5},
    "restart_3_noise": {
        "num_steps": 3,
        "sampler": "restart",
        "seed": 5,
        "noise": NOISE,
    },
}
# Arguments of `flow_map` besides x_t.
TIMES = (
    np.array([0.994, 0.9, 0.5, 0.25], "float32"),
    np.array([0.5, 0.0, 0.5, 0.125], "float32"),
)
FLOW_MAPS = {"flow_map": {}, "flow_map_raw": {"weights": "raw"}}
GUIDED_FLOW_MAPS = {"flow_map_guided": {"guidance_scale": GUIDANCE}}

# Arguments of `export_saved_model`.
WIDE = (-4.0, 4.0)
EXPORTS = {
    "pushforward": {
        "num_steps": (1, 2),
        "guidance_scale": GUIDANCE,
        "value_range": WIDE,
    },
    "restart": {"num_steps": (3,), "sampler": "restart", "value_range": WIDE},
}
ONNX = {"num_steps": 2, "guidance_scale": GUIDANCE}


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels that the models are trained with: three batches of 16."""
    x = np.random.default_rng(1).normal(0, 0.5, (48, 4, 4, 1)).astype("float32")
    return x, (np.arange(48) % 3).astype("int32")


class Stream(keras.utils.PyDataset):
    """Other batches in every epoch, and a position that a checkpoint can hold."""

    ordered = True
    fingerprint = {"name": "witness"}  # noqa: RUF012, never changed

    def __init__(self):
        super().__init__()
        self.epoch, self.running = 0, False

    def __len__(self):
        return 3

    def __getitem__(self, i):
        rng = np.random.default_rng([self.epoch, i])
        x = 0.5 * rng.standard_normal((16, 4, 4, 1)).astype("float32")
        return x, (np.arange(16) % 3).astype("int32")

    def on_epoch_begin(self):
        self.running = True

    def on_epoch_end(self):
        self.epoch += self.running
        self.running = False

    def get_state(self):
        return {"epoch": self.epoch}

    def set_state(self, state):
        self.epoch = state["epoch"]


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Ends a run after the second batch of its epoch `KILLED_IN_EPOCH`."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (KILLED_IN_EPOCH, 1):
            raise Killed


def conditional() -> keras_imm.IMM:
    """A compiled DiT whose settings are seldom the defaults.

    Epsilon is far above the rounding of gradients: the keys' biases have none, and
    what rounding leaves of it must not become a step.
    """
    model = keras_imm.IMM(
        small_dit(hidden_size=8, dropout=0.1),
        time_mapping=keras_imm.time_mappings.EtaDecrement(k=10, min_gap=0.005),
        weighting=keras_imm.weightings.ELBO(a=2, b=4),
        second_time="stride",
        group_size=4,
        accumulation_steps=2,
        label_dropout=0.2,
        seed=3,
    )
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(3e-2, 100),
            weight_decay=0.01,
            epsilon=1e-3,
            use_ema=True,
            ema_momentum=0.9,
        )
    )
    return model


def unconditional() -> keras_imm.IMM:
    """A compiled U-Net with the pieces that `conditional` has not."""
    backbone = keras_imm.backbones.UNet(
        image_shape=(4, 4, 1),
        model_channels=4,
        channel_mult=(1, 1),
        num_blocks=1,
        attention_resolutions=(2,),
        channel_mult_embedding=1,
        augmentation_dim=9,
    )
    model = keras_imm.IMM(
        backbone,
        schedule="cosine",
        parameterization="simple_edm",
        time_mapping=keras_imm.time_mappings.LogSNRDecrement(k=8, min_gap=1e-4),
        kernel=keras_imm.kernels.PseudoHuber(c=0.1),
        weighting="uniform",
        time_scale=100.0,
        group_size=2,
        min_time=0.006,
        max_time=0.996,
        drop_target_labels=False,
        augmentation=keras_imm.augmentation.EDMAugmentation(0.12, seed=1),
    )
    model.compile(
        keras_imm.optimizers.RAdam(
            1e-2, epsilon=1e-3, use_ema=True, ema_momentum=0.9, clipnorm=1.0
        )
    )
    return model


def answers_to_noise(model: keras_imm.IMM) -> dict[str, np.ndarray]:
    """What the model makes of given noise, which is the same on every backend."""
    given = _labels(model)
    images, maps = dict(FROM_NOISE), dict(FLOW_MAPS)
    if given:
        images |= GUIDED
        maps |= GUIDED_FLOW_MAPS
    answers = {
        name: model.generate(noise=NOISE, **given, **arguments)
        for name, arguments in images.items()
    }
    for name, arguments in maps.items():
        x_s = model.flow_map(NOISE, *TIMES, **given, **arguments)
        answers[name] = ops.convert_to_numpy(x_s)
    if given:
        answers["no_labels"] = model.generate(noise=NOISE)
    return answers


def drawn_answers(model: keras_imm.IMM) -> dict[str, np.ndarray]:
    """What it makes with random numbers; the first moves the model's own stream."""
    given = _labels(model)
    loss = np.float32(
        model.evaluate(*data()[: 1 + len(given)], batch_size=16, verbose=0)
    )
    own = model.generate(num_samples=4, num_steps=2, **given)
    answers = {
        name: model.generate(num_samples=4, **given, **arguments)
        for name, arguments in DRAWN.items()
    }
    return {"evaluate": loss, "own_stream": own, **answers}


def _labels(model):
    return {} if model.backbone.num_classes == 0 else {"labels": LABELS}


def weights_and_averages(model: keras_imm.IMM) -> dict[str, np.ndarray]:
    """Raw weights and their averages; leaves the averages in the model."""
    found = {f"raw_{i}": w for i, w in enumerate(model.backbone.get_weights())}
    model.optimizer.finalize_variable_values(model.trainable_variables)
    averages = model.backbone.get_weights()
    return found | {f"ema_{i}": w for i, w in enumerate(averages)}


def requests() -> dict[str, np.ndarray]:
    """Five rows of every input that any signature has."""
    rng = np.random.default_rng(4)
    return {
        "seed": np.array([1, 2**32 + 1, -7, 2**63 - 1, 1], "int64"),
        "label": np.array([0, 1, 2, 3, 1], "int32"),
        "guidance_scale": np.linspace(0.5, 3.0, 5).astype("float32"),
        "noise": rng.standard_normal((5, 4, 4, 1)).astype("float32"),
        "x_t": rng.standard_normal((5, 4, 4, 1)).astype("float32"),
        "t": np.linspace(0.5, 0.9, 5).astype("float32"),
        "s": np.linspace(0.0, 0.5, 5).astype("float32"),
    }


def served(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The signatures of a SavedModel, and their answers to `requests()`."""
    tf = importlib.import_module("tensorflow")
    signatures = tf.saved_model.load(str(path)).signatures
    described, answers = {}, {}
    for name, function in sorted(signatures.items()):
        inputs = function.structured_input_signature[1]
        outputs = function.structured_outputs
        described[name] = {
            "inputs": {key: _spec(spec) for key, spec in sorted(inputs.items())},
            "outputs": {key: _spec(spec) for key, spec in sorted(outputs.items())},
        }
        found = function(**{key: tf.constant(requests()[key]) for key in inputs})
        for key, value in found.items():
            if value.dtype == tf.string:  # PNG files: what is in them
                value = tf.stack([tf.io.decode_png(file) for file in value])
            answers[f"{name}/{key}"] = value.numpy()
    return described, answers


def _spec(spec):
    return {"dtype": spec.dtype.name, "shape": list(spec.shape)}


def through_onnx(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The inputs and outputs of an ONNX file, and its answers to `requests()`."""
    session = importlib.import_module("onnxruntime").InferenceSession(path)

    def spec(value):  # a size that is free has a made-up name
        sizes = [None if isinstance(size, str) else size for size in value.shape]
        return {"dtype": value.type, "shape": sizes}

    ends = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    described = {
        end: {value.name: spec(value) for value in values}
        for end, values in ends.items()
    }
    names = list(described["outputs"])
    feed = {name: requests()[name] for name in described["inputs"]}
    return described, dict(zip(names, session.run(names, feed), strict=True))
