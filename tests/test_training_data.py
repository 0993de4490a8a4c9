"""Data that are nearly right are refused, or warned of, before a weight changes."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.serving.checks import plan_of

CLASSES = 3


@pytest.fixture
def model():
    model = keras_imm.IMM(small_dit(num_classes=CLASSES), seed=0)
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    return model


@pytest.fixture
def images():
    return 0.5 * np.random.default_rng(0).standard_normal((16, 4, 4, 1), "float32")


def labels(last):
    return np.array([0, 1, 2] * 5 + [last], "int32")


class Batches(keras.utils.PyDataset):
    def __init__(self, *batches, **attributes):
        super().__init__()
        self.batches = batches
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def as_generator(*batches):
    yield from batches


def as_tf_data(*batches):
    tf = pytest.importorskip("tensorflow")
    arrays = [np.concatenate(part) for part in zip(*batches, strict=True)]
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(len(batches[0][0]))


def as_data_loader(*batches):
    torch = pytest.importorskip("torch")
    arrays = [np.concatenate(part) for part in zip(*batches, strict=True)]
    tensors = torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays))
    return torch.utils.data.DataLoader(tensors, batch_size=len(batches[0][0]))


SOURCES = [Batches, as_generator, as_tf_data, as_data_loader]


def state(model):
    variables = model.variables + model.optimizer.variables
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("wrong", [-1, CLASSES, 12])
def test_labels_out_of_range_in_arrays(model, images, wrong, jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("PyTorch's compiler needs minutes on a CPU")
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
    message = rf"Labels must be in \[0, {CLASSES}\).*Received: label {wrong}"
    before = state(model)
    given = {"x": images, "y": labels(wrong)}
    split = {"x": np.tile(images, (2, 1, 1, 1)), "y": np.repeat(labels(wrong), 2)}
    for call in (
        lambda: model.fit(**given, verbose=0),
        lambda: model.fit(**split, validation_split=0.5, verbose=0),
        lambda: model.fit(
            images, labels(0), validation_data=(images, labels(wrong)), verbose=0
        ),
        lambda: model.evaluate(**given, verbose=0),
        lambda: model.train_on_batch(**given),
        lambda: model.test_on_batch(**given),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("source", SOURCES)
def test_labels_out_of_range_in_a_batch(model, images, source):
    batches = [(images, labels(0)), (images, labels(CLASSES))]
    good = [(images, labels(0)), (images, labels(1))]
    match = rf"Labels must be in \[0, {CLASSES}\).*Received: label {CLASSES}"
    model.fit(source(*good), verbose=0)
    assert model.optimizer.iterations == 2
    once = state(model)
    with pytest.raises(ValueError, match=match):
        model.fit(source(*batches[::-1]), shuffle=False, verbose=0)
    for one, other in zip(once, state(model), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=match):
        model.evaluate(source(*batches), verbose=0)
    with pytest.raises(ValueError, match=match):
        model.fit(images, labels(0), validation_data=source(*batches), verbose=0)
    assert all(np.all(np.isfinite(value)) for value in state(model))


def test_checks_change_nothing(model, images):
    """A run from batches is that from arrays, validation included."""
    data = Batches((images, labels(0)), (images, labels(1)))
    arrays = np.concatenate([images, images]), np.concatenate([labels(0), labels(1)])
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    runs = []
    for given in (
        {"x": data, "validation_data": Batches((images, labels(2)))},
        {
            **{"x": arrays[0], "y": arrays[1], "batch_size": 16},
            "validation_data": (images, labels(2)),
        },
    ):
        one = keras_imm.IMM(small_dit(num_classes=CLASSES), seed=0)
        one.backbone.set_weights(model.backbone.get_weights())
        one.compile(keras.optimizers.Adam(1e-3, use_ema=True))
        runs.append(one.fit(**given, **options).history)
    for name, values in runs[0].items():
        np.testing.assert_allclose(values, runs[1][name], rtol=1e-6, err_msg=name)
    assert {"loss", "val_loss"} <= runs[0].keys()


def test_classes_of_the_data_set(model, images):
    data = Batches((images, labels(0)), num_classes=np.int64(10))
    with pytest.raises(ValueError, match="has 10 classes, the backbone num_classes=3"):
        model.fit(data, verbose=0)
    model.fit(Batches((images, labels(0)), num_classes=CLASSES), verbose=0)


def test_the_data_may_lack_the_last_classes_unless_they_have_names(model, images):
    data = Batches((images, np.minimum(labels(0), CLASSES - 2)))
    data.num_classes = CLASSES - 1
    model.fit(data, verbose=0)
    data.class_names = ["coat", "bag"]
    with pytest.raises(ValueError, match="has 2 classes, the backbone num_classes=3"):
        model.fit(data, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x: ((x, labels(0)),), "two arguments: `x` and `y`"),
        (lambda x: ({"image": x},), r"Received: dict with \['image'\]"),
        (lambda x: (Batches({"image": x, "label": labels(0)}),), "map others to these"),
        (lambda x: (Batches((x, labels(0), np.ones(16))),), "No sample weights"),
        (lambda x: (Batches((x, {"label": labels(0)})),), r"dict with \['label'\]"),
        (
            lambda x: (x, labels(0).tolist()),
            r"`y` must be an array.*Received: y=\[0, 1",
        ),
        (lambda x: (x, labels(0).astype(str)), r"shape \(16,\), dtype <U"),
        (lambda x: (x, np.int32(1)), r"integers of shape \(batch,\).*shape \(\)"),
        (lambda x: ("cifar10",), "keras_imm.datasets.load.*Received: x='cifar10'"),
        (lambda x: (), "`x` must be arrays or batches.*Received: x=None"),
    ],
)
def test_other_kinds_of_data(model, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.fit(*arguments(images), verbose=0)


@pytest.mark.parametrize("name", ["class_weight", "sample_weight"])
def test_weights_of_samples(model, images, name):
    with pytest.raises(ValueError, match=f"No sample weights.*{name}"):
        model.fit(images, labels(0), verbose=0, **{name: {0: 1.0}})


def test_weights_of_samples_of_validation_are_known_before(model, images):
    with pytest.raises(ValueError, match=r"No sample weights.*sample_weight"):
        model.fit(
            *(images, labels(0)),
            validation_data=(images, labels(0), np.ones(16)),
            verbose=0,
        )
    assert model.optimizer.iterations == 0
    with pytest.raises(ValueError, match=r"No sample weights.*sample_weight"):
        model.evaluate(images, labels(0), sample_weight=np.ones(16), verbose=0)


@pytest.mark.any_backend("batches are read by NumPy")
@pytest.mark.parametrize("source", [None, *SOURCES])
@pytest.mark.parametrize(
    "scaled",
    [lambda x: 255 * np.abs(np.tanh(x)), lambda x: np.abs(np.tanh(x)), lambda x: 8 * x],
    ids=["0 to 255", "0 to 1", "too wide"],
)
def test_one_warning_of_data_of_another_scale(model, images, scaled, source):
    x = scaled(images).astype("float32")
    given = {"x": x, "y": labels(0)}
    if source is not None:
        given = {"x": source((x, labels(0)), (x, labels(1)))}
    with pytest.warns(UserWarning, match="The first batch is in") as caught:
        model.fit(**given, epochs=1, verbose=0)
    assert sum("The first batch is in" in str(one.message) for one in caught) == 1


def test_a_scale_is_warned_of_once_and_another_again(model, images):
    with pytest.warns(UserWarning, match="The first batch is in") as caught:
        model.fit(8 * images, labels(0), verbose=0)
        for _ in range(2):
            model.evaluate(8 * images[:8], labels(0)[:8], verbose=0)
        model.evaluate(images / 99, labels(0), verbose=0)
    messages = [str(one.message) for one in caught]
    assert sum("The first batch is in" in message for message in messages) == 2


@pytest.mark.parametrize("name", ["train_on_batch", "test_on_batch"])
def test_the_first_of_single_batches_is_warned_of(model, images, name):
    with pytest.warns(UserWarning, match="The first batch is in") as caught:
        for _ in range(2):
            getattr(model, name)(8 * images, labels(0))
    assert sum("The first batch is in" in str(one.message) for one in caught) == 1


@pytest.mark.any_backend("batches are read by NumPy")
@pytest.mark.parametrize("source", [None, Batches])
def test_no_warning_of_data_that_are_scaled(model, images, source):
    given = {"x": images, "y": labels(0)}
    if source is not None:
        given = {"x": source((images, labels(0)))}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The first batch")
        model.fit(**given, verbose=0)
        model.train_on_batch(images, labels(0))


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        (18, {}, "2, the last of 18 rows of training data in batches of 16"),
        (
            40,
            {"validation_split": 0.25},
            "14, the last of 30 rows of training data in batches of 16",
        ),
        (22, {"validation_split": 0.25}, "6, the last of 6 rows of validation data"),
    ],
)
def test_a_last_batch_of_incomplete_groups_is_known_before(
    model, images, rows, options, what
):
    x = np.tile(images, (3, 1, 1, 1))[:rows]
    y = np.zeros(rows, "int32")
    with pytest.raises(ValueError, match=what):
        model.fit(x, y, batch_size=16, verbose=0, **options)
    assert model.optimizer.iterations == 0


def test_data_for_validation_take_the_place_of_a_split(model, images):
    """As in Keras: 16 rows are trained with, of which a split would leave 14."""
    history = model.fit(
        *(images, labels(0)),
        validation_split=0.1,
        validation_data=(images, labels(1)),
        verbose=0,
    ).history
    assert "val_loss" in history


@pytest.mark.one_backend("the plan of an export is made alike")
def test_an_export_with_the_null_label_that_was_never_trained():
    model = keras_imm.IMM(small_dit(num_classes=CLASSES), label_dropout=0.0)
    with pytest.warns(UserWarning, match="The null label, which guidance needs"):
        plan_of(model, guidance_scale=2.0)


def test_the_null_label_that_was_never_trained(images):
    model = keras_imm.IMM(small_dit(num_classes=CLASSES), label_dropout=0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The null label")
        model.generate([0, 1], guidance_scale=1.0)
    for arguments in (
        {"num_samples": 2},
        {"labels": [0, CLASSES]},
        {"labels": [0], "guidance_scale": 2.0},
    ):
        model = keras_imm.IMM(small_dit(num_classes=CLASSES), label_dropout=0.0)
        with pytest.warns(UserWarning, match="null label.*label_dropout=0.0") as caught:
            model.generate(**arguments)
            model.generate(**arguments)
        assert len([one for one in caught if "null label" in str(one.message)]) == 1


def test_labels_that_were_never_trained(images):
    def new_model():
        return keras_imm.IMM(small_dit(num_classes=CLASSES), label_dropout=1.0)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not trained")
        new_model().generate(num_samples=2, guidance_scale=2.0)
        new_model().generate([CLASSES])
    for arguments in ({"labels": [CLASSES, 1]}, {"labels": 0, "guidance_scale": 2.0}):
        model = new_model()
        with pytest.warns(UserWarning, match=r"Labels .*label_dropout=1.0") as caught:
            model.generate(**arguments)
            model.generate(**arguments)
        assert len([one for one in caught if "not trained" in str(one.message)]) == 1


@pytest.mark.parametrize("wrong", [-1, CLASSES + 1])
def test_labels_out_of_range_in_a_call(model, images, wrong):
    right, outside = np.array([0, CLASSES], "int32"), np.array([0, wrong], "int32")
    expected = model.flow_map(images[:2], 0.9, 0.1, right, weights="raw")
    for given in (np.asarray, ops.convert_to_tensor):
        x = model(images[:2], 0.9, 0.1, given(right))
        np.testing.assert_allclose(
            *(ops.convert_to_numpy(one) for one in (x, expected)), atol=1e-5
        )
        with pytest.raises(ValueError, match=rf"in \[0, 3\].*null.*Received: {wrong}"):
            model(images[:2], 0.9, 0.1, given(outside))


def test_labels_of_a_model_that_takes_none(images):
    model = keras_imm.IMM(small_dit(num_classes=0))
    with pytest.raises(ValueError, match="The backbone is unconditional"):
        model(images[:2], labels=np.zeros(2, "int32"))


def test_labels_of_a_call_that_is_traced_are_not_asked_for(model, images):
    call = keras_imm.backend.compile_function(lambda x, y: model(x, 0.9, 0.1, y))
    x = ops.convert_to_tensor(images[:2])
    for given in ([0, 1], [2, 1]):
        y = ops.convert_to_tensor(np.array(given, "int32"))
        results = call(x, y), model(x, 0.9, 0.1, y)
        np.testing.assert_allclose(*map(ops.convert_to_numpy, results), atol=1e-5)
