"""A trained model for other labels."""

from collections.abc import Iterator

import keras
from keras import ops

from keras_imm.model import FlowMapModel
from keras_imm.validation import check_choice, check_instance, check_integer

# Only these may differ between a model and its copy.
_LABEL_LAYERS = ("label_embedding", "label_dense")


def with_num_classes(
    model: FlowMapModel, num_classes: int, weights: str = "ema"
) -> FlowMapModel:
    """Copies a model for another number of labels, to train it on.

    Everything is kept but the weights of the labels, which start anew; the null
    label's, which guidance and dropped labels use, is kept as well.

    Args:
        model: A `FlowMapModel` whose backbone has an argument `num_classes`: `DiT`,
            `UNet`. It is not changed.
        num_classes: Integer, at least 0. Number of labels; 0 for none.
        weights: "ema" to start from the optimizer's averages, where there are any,
            "raw" from the model's own weights.

    Returns:
        A new model of the same class, not compiled, with nothing frozen.

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
    check_instance("model", model, FlowMapModel)
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
    copy = type(model).from_config(
        {
            **model.get_config(),
            "backbone": keras.saving.serialize_keras_object(backbone),
            "num_classes": int(num_classes),
            "frozen_layers": [],
            "class_names": None,
            **({} if num_classes else {"sampling_plan": None}),  # which may guide
        }
    )
    values = model.weights_for_sampling(weights)
    old = {
        path: value
        for (path, _), value in zip(_weights(model.backbone), values, strict=False)
    }
    for path, variable in _weights(copy.backbone):
        if path == "label_embedding/embeddings" and path in old:
            table = ops.convert_to_numpy(variable).copy()
            table[-1] = ops.convert_to_numpy(old[path])[-1]
            variable.assign(table)
        elif path in old and path != "label_dense/kernel":
            variable.assign(ops.copy(old[path]))  # JAX's training gives buffers away
        elif path.split("/")[0] not in _LABEL_LAYERS:
            raise ValueError(
                f"Weight {path!r} of the copy has no counterpart in `model`."
            )
    return copy


def _weights(backbone: keras.layers.Layer) -> Iterator[tuple[str, keras.Variable]]:
    """Weights and their paths within the backbone.

    In front of those stand the names of the backbone and of the models that it was
    built in, if any: the part that all paths share. Backbones have many layers, so no
    name of a layer is in it.
    """
    paths = [variable.path.split("/") for variable in backbone.weights]
    shared = 0
    while paths and len({tuple(path[: shared + 1]) for path in paths}) == 1:
        shared += 1
    for path, variable in zip(paths, backbone.weights, strict=True):
        yield "/".join(path[shared:]), variable
