"""Which axes of a network's weights are split over devices."""

import keras

from keras_imm.validation import check_instance


def dit_layout_map(
    device_mesh: keras.distribution.DeviceMesh, axis: str = "model"
) -> keras.distribution.LayoutMap:
    """Splits the weights of a `DiT`, for `keras.distribution.ModelParallel` under JAX.

    Of each pair of dense layers the first is split by its outputs and the second by its
    inputs, so that what lies between them stays on its device. Modulations and the
    table of labels are split by their outputs. The averages of the weights and the rest
    of the optimizer's state follow the weights. What is small stays whole.

    Args:
        device_mesh: Mesh of devices, one of whose axes is `axis`. The size of that axis
            must divide the network's `hidden_size`.
        axis: Name of the mesh's axis over which the weights are split.

    Returns:
        `keras.distribution.LayoutMap`.

    Raises:
        ValueError: If `device_mesh` is no device mesh or has no such axis.

    Example:

    ```python
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    strategy = keras.distribution.ModelParallel(
        layout_map=keras_imm.distribution.dit_layout_map(mesh), batch_dim_name="batch"
    )
    keras.distribution.set_distribution(strategy)
    model = keras_imm.recipes.build("imagenet256_dit_xl_2_stride")
    ```

    Reference:
        - [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053), Section 3
    """
    check_instance("device_mesh", device_mesh, keras.distribution.DeviceMesh)
    if axis not in device_mesh.axis_names:
        raise ValueError(
            f"`axis` must be one of {tuple(device_mesh.axis_names)}. "
            f"Received: axis={axis!r}"
        )
    layout_map = keras.distribution.LayoutMap(device_mesh)
    for layer in (
        r"block_\d+/attention/qkv",
        r"block_\d+/mlp_hidden",
        r"(block_\d+|final_layer)/modulation",
        r"[ts]_embedding/hidden_dense",
    ):
        layout_map[rf"(.*/)?{layer}/kernel"] = (None, axis)
        layout_map[rf"(.*/)?{layer}/bias"] = (axis,)
    for layer in (
        r"block_\d+/attention/projection",
        r"block_\d+/mlp_output",
        r"[ts]_embedding/output_dense",
    ):
        layout_map[rf"(.*/)?{layer}/kernel"] = (axis, None)
    layout_map[r"(.*/)?label_embedding/embeddings"] = (None, axis)
    return layout_map
