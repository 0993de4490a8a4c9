"""One of two JAX processes of two devices each. Arguments: folder, address, index."""

import pathlib
import sys

import keras
import runs

from keras_imm import distribution


def main(folder, address, index):
    strategy = distribution.initialize(address, 2, index)
    images, labels = runs.data()
    rows = [
        r for start in (0, 16) for r in range(start + 8 * index, start + 8 + 8 * index)
    ]
    own = runs.Batches(images[rows], labels[rows], 8)
    with strategy.scope():
        model = runs.make(optimizer=runs.clipped())
    losses = runs.fit(model, own)
    seen = {
        "process": [
            distribution.process_index(),
            distribution.process_count(),
            distribution.num_devices(),
            distribution.is_chief(),
        ],
        "losses": losses,
        "evaluate": float(model.evaluate(own, verbose=0)),
        "state": runs.state(model).tolist(),
        "samples": model.generate([0, 1], seed=1).ravel().tolist(),
    }
    if distribution.is_chief():
        with distribution.alone():
            model.save(f"{folder}/model.keras")
    distribution.barrier()
    seen["restored"] = keras.distribution.distribution() is strategy.native
    folder = pathlib.Path(folder) / str(index)
    folder.mkdir()
    runs.write(seen, folder)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
