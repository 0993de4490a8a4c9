"""Event files, read back by TensorBoard's own reader."""

import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from keras_imm import distribution
from keras_imm.callbacks import (
    LearningRate,
    QualityMonitor,
    SampleGrid,
    SampleMetrics,
    TensorBoard,
)


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Scalars of the folder, as TensorBoard shows them: tag -> {step: value}."""
    # TensorBoard would load TensorFlow to read files.
    name = "tensorboard.compat.notf"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(kind="scalars"):
        events = EventAccumulator(str(tmp_path), {"scalars": 0, "images": 0})
        events.Reload()
        tags = events.Tags()[kind]
        if kind == "images":
            return {tag: events.Images(tag) for tag in tags}
        return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}

    return read


def test_every_entry_of_the_logs_at_the_steps_of_the_optimizer(stub, tmp_path, read):
    board = TensorBoard(tmp_path)
    history = stub.run(LearningRate(), board, epochs=3).history
    scalars = read()
    assert scalars.keys() == {"loss", "learning_rate"}
    for name, values in scalars.items():
        assert list(values) == [2, 4, 6]
        np.testing.assert_allclose(list(values.values()), history[name], rtol=1e-6)


def test_a_second_fit_continues_the_axis(stub, tmp_path, read):
    board = TensorBoard(tmp_path)
    stub.run(board)
    stub.run(board, epochs=2)
    assert list(read()["loss"]) == [2, 4, 6]


def test_the_loss_every_n_steps(stub, tmp_path, read):
    """The learning rate is 0, so the loss of a batch follows from its data."""
    stub.compile(keras.optimizers.SGD(0.0), "mse")
    stub.set_weights([np.zeros((1, 1)), np.zeros(1)])
    y = np.arange(1.0, 8.0).astype("float32")[:, None]
    callbacks = [TensorBoard(tmp_path, every_n_steps=3)]
    stub.fit(
        *(y, y),
        batch_size=1,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    # Seven steps an epoch; an epoch starts a mean anew.
    losses = 2 * [y**2 for y in range(1, 8)]
    means = {n: np.mean(losses[a:n]) for a, n in ((0, 3), (3, 6), (7, 9), (9, 12))}
    assert read()["step_loss"] == pytest.approx(means, rel=1e-5)


def test_the_last_step_of_an_epoch_is_written_too(stub, tmp_path, read):
    history = stub.run(TensorBoard(tmp_path, every_n_steps=2), epochs=2).history
    expected = dict(zip((2, 4), history["loss"], strict=True))
    assert read()["step_loss"] == pytest.approx(expected)


class StopAfter(keras.callbacks.Callback):
    """Ends training at a batch, counted from 0."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == self.batch


@pytest.mark.parametrize("kind", ["cut short", "of unknown length"])
def test_the_loss_at_the_end_of_an_epoch(stub, tmp_path, read, kind):
    """The learning rate is 0, so the loss of a batch follows from its data."""
    stub.compile(keras.optimizers.SGD(0.0), "mse")
    stub.set_weights([np.zeros((1, 1)), np.zeros(1)])
    y = np.arange(1.0, 9.0).astype("float32")[:, None]
    callbacks = [TensorBoard(tmp_path, every_n_steps=3)]
    if kind == "cut short":
        data = {"x": y, "y": y, "batch_size": 1}
        callbacks.append(StopAfter(5))
    else:
        data = {"x": ((y[i : i + 1], y[i : i + 1]) for i in range(6))}
    stub.fit(**data, shuffle=False, verbose=0, callbacks=callbacks)
    means = {3: np.mean([1, 4, 9]), 6: np.mean([16, 25, 36])}
    assert read()["step_loss"] == pytest.approx(means, rel=1e-5)


class Stop(Exception):
    pass


def test_the_same_callback_after_a_fit_that_failed(stub, tmp_path, read):
    def die(epoch, logs):
        raise Stop

    board = TensorBoard(tmp_path)
    with pytest.raises(Stop):
        stub.run(board, keras.callbacks.LambdaCallback(on_epoch_end=die))
    stub.optimizer.iterations.assign(0)
    history = stub.run(board).history
    assert read()["loss"] == pytest.approx({2: history["loss"][0]})
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_run_wrote_past_its_checkpoint_is_hidden(stub, tmp_path, read):
    on_disk = []

    def die(epoch, logs):
        on_disk.append(list(read()["loss"]))
        if epoch == 2:
            raise Stop

    kill = keras.callbacks.LambdaCallback(on_epoch_end=die)
    with pytest.raises(Stop):
        stub.run(TensorBoard(tmp_path), kill, epochs=5)
    written = read()["loss"]
    assert list(written) == [2, 4, 6]
    assert on_disk == [[2], [2, 4], [2, 4, 6]]

    class Restore(keras.callbacks.Callback):
        """As `TrainingCheckpoint` does, which stands last."""

        def on_train_begin(self, logs=None):
            self.model.optimizer.iterations.assign(4)

    stub.set_weights([np.full(w.shape, 9.0) for w in stub.get_weights()])
    again = stub.run(TensorBoard(tmp_path), Restore(), epochs=2).history["loss"]
    losses = read()["loss"]
    assert list(losses) == [2, 4, 6, 8]
    assert losses[4] == written[4]
    assert [losses[6], losses[8]] == pytest.approx(again)


def test_a_new_run_in_the_folder_of_an_old_one_hides_it(stub, tmp_path, read):
    stub.run(TensorBoard(tmp_path), epochs=3)
    stub.optimizer.iterations.assign(0)
    stub.run(TensorBoard(tmp_path))
    assert list(read()["loss"]) == [2]


def test_pictures(stub, tmp_path, read):
    import io

    from PIL import Image

    board = TensorBoard(tmp_path)
    grid = SampleGrid(
        tmp_path / "a{step}.png", labels=[0, 5], every_n_steps=3, tensorboard=board
    )
    stub.run(grid, board, epochs=3)
    (events,) = read("images").values()
    assert [event.step for event in events] == [3, 6]
    for event in events:
        picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        file = np.asarray(Image.open(tmp_path / f"a{event.step}.png"))
        assert picture.shape == (2 * 4, 2 * 5, 3)
        np.testing.assert_array_equal(picture[..., 0], file)


def test_measurements_stand_at_their_own_steps_only(stub, tmp_path, read):
    board = TensorBoard(tmp_path)
    arguments = {"num_samples": 3, "num_steps": 2, "every_n_steps": 3}
    rng = np.random.default_rng(0)
    quality = QualityMonitor(
        rng.normal(size=(9, 2, 3, 1)), tensorboard=board, **arguments
    )
    untold = SampleMetrics({"mean": lambda samples, _: samples.mean()}, **arguments)
    stub.run(quality, untold, board, epochs=4)
    scalars = read()
    assert list(scalars["frechet_2_steps"]) == [3, 6]
    assert list(scalars["mean_2_steps"]) == [4, 6]  # with the logs of the epochs
    assert list(scalars["loss"]) == [2, 4, 6, 8]


def test_only_the_chief_writes(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "is_chief", lambda: False)
    board = TensorBoard(tmp_path, every_n_steps=1)
    quality = SampleMetrics(
        {"m": lambda samples, _: 0.0}, num_samples=1, tensorboard=board
    )
    stub.run(quality, SampleGrid(num_samples=1, tensorboard=board), board)
    assert not list(tmp_path.iterdir())


def test_a_board_that_is_not_in_fit_is_named(stub, tmp_path):
    board = TensorBoard(tmp_path)
    with pytest.raises(ValueError, match=r"callbacks of `fit`.*log_dir="):
        stub.run(SampleGrid(num_samples=1, tensorboard=board))


def test_a_missing_library_is_named_before_training(stub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    with pytest.raises(ImportError, match=r'pip install "keras_imm\[tensorboard\]"'):
        stub.run(count, TensorBoard(tmp_path))
    assert not steps


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="it is about the other backends"
)
@pytest.mark.slow("child processes")
def test_no_tensorflow_is_loaded(tmp_path):
    code = f"""
import sys
sys.modules["tensorflow"] = None  # what tries to import it fails
import keras, numpy as np
from keras_imm.callbacks import SampleGrid, TensorBoard
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.data_shape = (2, 2, 1)
model.generate = lambda **_: np.zeros((1, 2, 2, 1), "float32")
board = TensorBoard({str(tmp_path)!r}, every_n_steps=1)
grid = SampleGrid(num_samples=1, tensorboard=board)
x = np.ones((4, 1))
model.fit(x, x, verbose=0, callbacks=[grid, board])
"""
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_dir": None}, "`log_dir`.*None"),
        ({"log_dir": ""}, "`log_dir`.*''"),
        ({"log_dir": "a", "every_n_steps": 0}, "`every_n_steps`.*0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TensorBoard(**arguments)
