"""The stream of batches, and `fit` on it."""

import itertools
import json
import threading

import keras
import numpy as np
import pytest
from image_files import pixels

from keras_imm.datasets import ImageDataset, batch_reader, load
from keras_imm.datasets.part_stream import PartStream

pytestmark = pytest.mark.any_backend("NumPy code")


def arrays(count=20, size=4):
    """Images of which each has a mean of its own; labels count them modulo 3."""
    images = np.stack([pixels(i, size, size, 1) // 2 + i for i in range(count)])
    return images[..., None], np.arange(count) % 3


def batches_of(dataset, epochs):
    """What epochs of `fit` would see."""
    seen = []
    for _ in range(epochs):
        dataset.on_epoch_begin()
        seen += [dataset[i] for i in range(len(dataset))]
        dataset.on_epoch_end()
    return seen


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_are_the_records_in_the_model_range():
    images, labels = arrays()
    dataset = load((images, labels), 6)
    assert (len(dataset), dataset.num_records, dataset.num_classes) == (3, 20, 3)
    assert (dataset.image_shape, dataset.class_names) == ((4, 4, 1), None)
    for i, (x, y) in enumerate(batches_of(dataset, 2)):
        indices = dataset.batch_indices(i % 3, epoch=i // 3)
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(y, labels[indices])
        expected = images[indices] / np.float32(127.5) - 1
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-7)
        # Sampling's way back to 8 bits, of MATH's "Sampling".
        back = np.clip(127.5 * x + 128, 0, 255).astype("uint8")
        np.testing.assert_array_equal(back, images[indices])


def test_a_record_alone_is_as_it_is_stored():
    images, labels = arrays()
    dataset = load((images, labels), 6, flip=True)
    for i in range(20):
        image, label = dataset.read_record(i)
        np.testing.assert_array_equal(image, images[i])
        assert (image.dtype, label) == (np.uint8, labels[i])


def test_every_order_of_access_gives_the_same_batches():
    rng = np.random.default_rng(0)
    expected = batches_of(load(arrays(), 4, flip=True, steps_per_epoch=8), 2)
    dataset = load(arrays(), 4, flip=True, steps_per_epoch=8)
    for epoch, i in rng.permutation(list(itertools.product(range(2), range(8)))):
        dataset.set_state({"epoch": int(epoch)})
        assert_same([dataset[i]], [expected[8 * epoch + i]])


def test_threads_may_share_it():
    expected = batches_of(load(arrays(), 4, steps_per_epoch=5), 1)
    dataset = load(arrays(), 4, steps_per_epoch=5)
    found = {}

    def read(i):
        found[i] = dataset[i]

    threads = [threading.Thread(target=read, args=(i,)) for i in (3, 0, 4, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([found[i] for i in range(5)], expected)


def test_epochs_cut_one_stream_into_stretches():
    """An epoch may be shorter or longer than a pass over the data."""
    stream = batches_of(load(arrays(), 6, flip=True), 7)
    for steps in (1, 2, 7):
        dataset = load(arrays(), 6, flip=True, steps_per_epoch=steps)
        assert_same(batches_of(dataset, 21 // steps), stream[: 21 // steps * steps])


def test_a_state_goes_on_where_it_was_taken():
    dataset = load(arrays(), 6)
    expected = batches_of(dataset, 4)
    dataset = load(arrays(), 6)
    batches_of(dataset, 2)
    state = json.loads(json.dumps(dataset.get_state()))
    later = load(arrays(), 6)
    later[0], later[1]  # `fit` looks before callbacks restore the state
    later.set_state(state)
    assert_same(batches_of(later, 2), expected[6:])
    later.set_state({"epoch": np.int64(2)})
    assert json.loads(json.dumps(later.get_state())) == {"epoch": 2}
    with pytest.raises(ValueError, match="`state` must be"):
        later.set_state({"step": 3})
    for epoch in (-1, 1.0, True):
        with pytest.raises(ValueError, match=r'state\["epoch"\]` must be an integer'):
            later.set_state({"epoch": epoch})


def test_only_an_epoch_that_has_begun_counts():
    dataset = load(arrays(), 6)
    dataset.on_epoch_end()
    assert dataset.epoch == 0
    dataset.on_epoch_begin()
    dataset.on_epoch_end()
    dataset.on_epoch_end()
    assert dataset.get_state() == {"epoch": 1}


def test_an_epoch_that_was_cut_short_counts_once():
    dataset = load(arrays(), 6)
    dataset.end_epoch()
    assert dataset.get_state() == {"epoch": 0}
    dataset.on_epoch_begin()
    dataset[0]
    assert dataset.get_state() == {"epoch": 0}
    dataset.end_epoch()
    assert dataset.get_state() == {"epoch": 1}
    dataset.end_epoch()
    dataset.on_epoch_end()
    assert dataset.get_state() == {"epoch": 1}


def test_the_state_after_a_stopped_fit_is_where_the_next_one_goes_on(make_model):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    dataset, model = recording(), make_model(compile_options={})
    model.fit(dataset, epochs=2, verbose=0, callbacks=[Stop()])
    dataset.end_epoch()
    state, dataset.asked = dataset.get_state(), []
    fit(model, dataset, 1)
    assert dataset.asked[-3:] == [(state["epoch"], i) for i in range(3)]
    assert state == {"epoch": 1}


def test_flips_are_fair_and_fresh():
    images = 80 * np.arange(4, dtype="uint8").reshape(1, 1, 4, 1).repeat(100, axis=0)
    seen = np.concatenate(batches_of(load(images, 100, flip=True), 4))
    flipped = seen[:, 0, 0, 0] > seen[:, 0, 3, 0]
    np.testing.assert_array_equal(
        np.sort(seen, axis=2), np.sort(seen, axis=2)[:1] + 0 * seen
    )
    assert 140 < flipped.sum() < 260  # six standard deviations around 200
    assert len({flipped[i : i + 100].tobytes() for i in range(0, 400, 100)}) == 4


def test_processes_share_a_batch_in_contiguous_slices():
    whole = load(arrays(), 6, flip=True)
    parts = [
        load(arrays(), 6, flip=True, process_index=r, process_count=3) for r in range(3)
    ]
    for i in range(3):
        slices = [part[i] for part in parts]
        assert [len(y) for _, y in slices] == [2, 2, 2]
        joined = [np.concatenate(values) for values in zip(*slices, strict=True)]
        assert_same([joined], [whole[i]])
        np.testing.assert_array_equal(
            np.concatenate([part.batch_indices(i) for part in parts]),
            whole.batch_indices(i),
        )
    assert parts[0].fingerprint == parts[1].fingerprint == whole.fingerprint


def test_the_fingerprint_changes_with_what_decides_the_stream():
    given = {"batch_size": 6}
    images, labels = arrays()
    fingerprint = load((images, labels), **given).fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    same = load((images, labels), 6, num_workers=2, on_corrupt="skip").fingerprint
    assert same == fingerprint
    for change in (
        {"batch_size": 5},
        {"seed": 1},
        {"shuffle": False},
        {"flip": True},
        {"steps_per_epoch": 2},
        {"labels": False},
        {"image_size": 2},
    ):
        assert load((images, labels), **given | change).fingerprint != fingerprint
    assert load((images + 1, labels), 6).fingerprint != fingerprint


def test_numpy_numbers_are_stored_as_python_has_them():
    given = {"batch_size": 6, "seed": 3, "steps_per_epoch": 2, "image_size": 2}
    given |= {"channels": 1, "process_index": 0, "process_count": 2}
    expected = load(arrays(), **given)
    as_numpy = {name: np.int64(value) for name, value in given.items()}
    dataset = load(arrays(), **as_numpy)
    assert json.dumps(dataset.fingerprint) == json.dumps(expected.fingerprint)
    assert json.loads(json.dumps(dataset.get_state())) == {"epoch": 0}
    assert_same([dataset[0]], [expected[0]])


class Seen(keras.callbacks.Callback):
    """Losses, and where the data are after each epoch."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.losses, self.epochs = dataset, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.dataset.epoch)


class Recording(ImageDataset):
    """Notes what `fit` asks for."""

    def __getitem__(self, index):
        self.asked = [*getattr(self, "asked", ()), (self.epoch, index)]
        return super().__getitem__(index)


def recording():
    dataset = load(arrays(), 8, steps_per_epoch=3, flip=True)
    dataset.__class__ = Recording
    return dataset


def fit(model, dataset, epochs):
    seen = Seen(dataset)
    model.fit(dataset, epochs=epochs, verbose=0, callbacks=[seen])
    return seen


@pytest.fixture
def started(monkeypatch):
    """A list that grows whenever reading ahead starts somewhere."""
    started = []
    monkeypatch.setattr(
        batch_reader, "PartStream", lambda *a: started.append(a) or PartStream(*a)
    )
    return started


def test_looking_elsewhere_does_not_interrupt_reading_ahead(started):
    dataset = load(arrays(), 4)
    for i in (0, 1, 0, 1, 2, 4, 3):
        dataset[i]
    assert len(started) == 1
    dataset.set_state({"epoch": 7})
    for i in range(5):
        dataset[i]
    assert len(started) == 2


def test_two_fits_are_one_long_fit(make_model, started):
    """And each reads every batch once, in order, after looking at two at most."""
    model = make_model(compile_options={})
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    values = [keras.ops.convert_to_numpy(v) for v in variables]
    data = recording()
    long = fit(model, data, 3)
    assert data.asked[-9:] == [(epoch, i) for epoch in range(3) for i in range(3)]
    assert len(data.asked) <= 11
    assert len(started) == 1
    trained = [keras.ops.convert_to_numpy(w) for w in model.weights]

    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    data = recording()
    first, second = fit(model, data, 1), fit(model, data, 2)
    assert long.losses == first.losses + second.losses
    assert len(set(long.losses)) == 9
    assert long.epochs == first.epochs + second.epochs == [1, 2, 3]
    assert len(started) == 2
    for weight, value in zip(model.weights, trained, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)


def test_labels_may_be_left_out():
    images, labels = arrays()
    for dataset in (load(images, 5), load((images, labels), 5, labels=False)):
        assert dataset.num_classes == 0
        assert dataset[0].shape == (5, 4, 4, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"batch_size": 21}, "`batch_size` must be at most the 20 records"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**32}, "`seed` must be below"),
        ({"shuffle": 1}, "`shuffle`"),
        ({"flip": "yes"}, "`flip`"),
        ({"labels": None}, "`labels`"),
        ({"image_size": 0}, "`image_size`"),
        ({"channels": 2}, "`channels`"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch`"),
        ({"num_workers": -1}, "`num_workers`"),
        ({"on_corrupt": "ignore"}, "`on_corrupt` must be one of 'raise', 'skip'"),
        ({"process_index": 2, "process_count": 2}, "`process_index` must be below"),
        ({"process_count": 4}, "`batch_size` must be a multiple of process_count=4"),
        ({"sigma_data": 0}, "`sigma_data`"),
        ({"split": None}, "`split`"),
        ({"split": "train[90%:]"}, "`split` must be left out.*an array"),
        ({"data_dir": "data"}, "`data_dir` must be left out.*=.data. and .*tuple"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        load(arrays(), **{"batch_size": 6} | change)


def test_a_batch_outside_the_epoch_is_an_index_error():
    dataset = load(arrays(), 6)
    for index in (-1, 3):
        with pytest.raises(IndexError, match="of 3 in an epoch"):
            dataset[index]
