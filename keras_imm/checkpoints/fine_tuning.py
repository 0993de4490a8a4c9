"""A trained model for other labels."""

from collections.abc import Iterator

import keras
from keras import ops

from keras_imm.imm import IMM
from keras_imm.validation import check_choice, check_instance, check_integer


def with_num_classes(model: IMM, num_classes: int, weights: str = "ema") -> IMM:
    """Copies a model for another number of labels, to train it on.

    Everything is kept but the weights of the labels, which start anew; the null
    label's, which guidance and dropped labels use, is kept as well.

    Args:
        model: An `IMM` whose backbone has an argument `num_classes`: `DiT`, `UNet`.
            It is not changed.
        num_classes: Integer, at least 0. Number of labels; 0 for none.
        weights: "ema" to start from the optimizer's averages, where there are any,
            "raw" from the model's own weights.

    Returns:
        A new `IMM`, not compiled, with nothing frozen.

    Raises:
        ValueError: If an argument is out of its range, or the backbone is of another
            kind.

    Example:

    ```python
    model = keras_imm.checkpoints.load_official("imagenet256_ts_a2")
    model = keras_imm.checkpoints.with_num_classes(model, 10)
    model.compile(keras.optimizers.AdamW(1e-5, epsilon=1e-8, use_ema=True))
    model.fit(dataset)
    ```
    """
    check_instance("model", model, IMM)
    check_integer("num_classes", num_classes, at_least=0)
    check_choice("weights", weights, ("ema", "raw"))
    backbone = model.backbone
    config = backbone.get_config()
    if "num_classes" not in config:
        raise ValueError(
            "`model` must have a backbone with an argument `num_classes`. "
            f"Received: a {type(backbone).__name__}"
        )
    config |= {"num_classes": int(num_classes), "trainable": True}
    backbone = type(backbone).from_config(config)
    copy = IMM.from_config(
        {
            **model.get_config(),
            "backbone": keras.saving.serialize_keras_object(backbone),
            "num_classes": int(num_classes),
            "frozen_layers": [],
        }
    )
    averages = model._averages() if weights == "ema" else {}
    old = {
        path: averages.get(id(variable), variable)
        for path, variable in _weights(model.backbone)
    }
    for path, variable in _weights(copy.backbone):
        if path not in old:
            continue  # the label layer of a model that had none
        if path == "label_embedding/embeddings":
            table = ops.convert_to_numpy(variable).copy()
            table[-1] = ops.convert_to_numpy(old[path])[-1]
            variable.assign(table)
        elif path != "label_dense/kernel":
            variable.assign(old[path].value)
    return copy


def _weights(backbone: keras.layers.Layer) -> Iterator[tuple[str, keras.Variable]]:
    """Weights and their paths within the backbone."""
    for variable in backbone.weights:
        yield variable.path.split(f"{backbone.name}/", 1)[1], variable
