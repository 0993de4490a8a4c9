"""The U-Net in float64 NumPy, straight from its equations.

Weights are read from the Keras layers by their names; nothing else of them is used.
"""

import keras
import numpy as np
from keras import ops

# Of results of about 1. Under float64 Keras still scales the logits of attention in
# float32, and on torch it multiplies matrices in float32.
TOLERANCES = {
    "float32": 1e-5,
    "float64": 1e-6 if keras.backend.backend() == "torch" else 1e-7,
}


def weight(variable):
    return ops.convert_to_numpy(variable).astype("float64")


def silu(x):
    return x / (1 + np.exp(-x))


def dense(x, layer):
    x = x @ weight(layer.kernel)
    return x + weight(layer.bias) if layer.use_bias else x


def pad(x, size):
    return np.pad(x, [(0, 0), (size, size), (size, size), (0, 0)])


def convolve(x, kernel):
    """Cross-correlation without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel)


def convolution(x, layer, padding):
    return convolve(pad(x, padding), weight(layer.kernel)) + weight(layer.bias)


def group_norm(x, layer):
    batch, height, width, channels = x.shape
    groups = min(32, channels // 4)
    grouped = x.reshape(batch, height, width, groups, -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = grouped.var(axis=(1, 2, 4), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return normed * weight(layer.gamma) + weight(layer.beta)


def image_filter(taps, channels):
    taps = np.asarray(taps, "float64") / sum(taps)
    return np.multiply.outer(np.outer(taps, taps), np.eye(channels))


def downsample(x, taps, padding=None):
    padding = (len(taps) - 1) // 2 if padding is None else padding
    filtered = convolve(pad(x, padding), image_filter(taps, x.shape[-1]))
    return filtered[:, ::2, ::2]


def upsample(x, taps):
    """Zeros between the pixels, then the filter with the sum 4."""
    batch, height, width, channels = x.shape
    sparse = np.zeros((batch, 2 * height, 2 * width, channels))
    sparse[:, ::2, ::2] = x
    near, far = len(taps) // 2, len(taps) // 2 - 1
    sparse = np.pad(sparse, [(0, 0), (near, far), (near, far), (0, 0)])
    return convolve(sparse, 4 * image_filter(taps, channels))


def attention(x, layer):
    """One head: softmax(q k^T / sqrt(channels)) v, projected."""
    tokens = x.reshape(len(x), -1, x.shape[-1])
    query, key, value = np.split(dense(tokens, layer.qkv), 3, axis=-1)
    logits = query @ key.swapaxes(1, 2) / np.sqrt(x.shape[-1])
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    attended = odds / odds.sum(axis=-1, keepdims=True) @ value
    return dense(attended, layer.projection).reshape(x.shape)


def block(x, embedding, layer, resample=None, taps=(1, 1), attends=False):
    x, embedding = np.float64(x), np.float64(embedding)

    def resampled(x):
        if resample is None:
            return x
        return {"down": downsample, "up": upsample}[resample](x, taps)

    h = resampled(silu(group_norm(x, layer.input_norm)))
    h = convolution(h, layer.input_conv, 1)
    h = h + dense(embedding, layer.embedding_dense)[:, None, None]
    h = convolution(silu(group_norm(h, layer.output_norm)), layer.output_conv, 1)
    skip = resampled(x)
    if resample is not None or x.shape[-1] != h.shape[-1]:
        skip = convolution(skip, layer.skip_conv, 0)
    x = (h + skip) * np.sqrt(0.5)
    if attends:
        normed = group_norm(x, layer.attention_norm)
        x = (x + attention(normed, layer.self_attention)) * np.sqrt(0.5)
    return x


def time_features(times, frequencies):
    angles = np.outer(np.float64(times), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def positional_frequencies(dim):
    half = dim // 2
    return 10000.0 ** (-np.arange(half) / (half - 1))


def embed(net, c_t, c_s, labels=None, augmentation_labels=None):
    if net.embedding_type == "positional":
        frequencies = positional_frequencies(
            net.model_channels * net.channel_mult_noise
        )
        t_frequencies = s_frequencies = frequencies
    else:  # drawn once, so read
        t_frequencies = weight(net.t_features.frequencies)
        s_frequencies = weight(net.s_features.frequencies)
    t, s = time_features(c_t, t_frequencies), time_features(c_s, s_frequencies)
    if labels is not None:
        rows = np.vstack([np.eye(net.num_classes), np.zeros(net.num_classes)])
        t = t + dense(rows[labels] * np.sqrt(net.num_classes), net.label_dense)
    if augmentation_labels is not None:
        t = t + dense(np.float64(augmentation_labels), net.augmentation_dense)
    t = dense(silu(dense(t, net.t_hidden)), net.t_output)
    s = dense(silu(dense(s, net.s_hidden)), net.s_output)
    return silu(t + s)


def unet(net, x, c_t, c_s, labels=None, augmentation_labels=None):
    """G of a `UNet` with random weights."""
    layers = {layer.name: layer for layer in net._flatten_layers(recursive=False)}
    taps, levels = net.resample_filter, len(net.channel_mult)
    embedding = embed(net, c_t, c_s, labels, augmentation_labels)

    def run(h, name, **options):
        return block(h, embedding, layers[name], taps=taps, **options)

    image = np.float64(x)
    h = convolution(image, net.input_conv, 1)
    skips = [h]
    for level in range(levels):
        side = net.image_shape[0] >> level
        name = f"encoder_{side}x{side}"
        attends = side in net.attention_resolutions
        if level > 0:
            h = run(h, f"{name}_down", resample="down")
            if net.encoder_type == "skip":
                image = downsample(image, taps)
                h = h + convolution(image, layers[f"{name}_aux_skip"], 0)
            elif net.encoder_type == "residual":
                # The border is padded once, for the convolution and the filter.
                conv = layers[f"{name}_aux_residual"]
                image = convolution(image, conv, 1 + (len(taps) - 1) // 2)
                image = h = (h + downsample(image, taps, padding=0)) * np.sqrt(0.5)
            skips.append(h)
        for index in range(net.num_blocks):
            h = run(h, f"{name}_block{index}", attends=attends)
            skips.append(h)

    image = 0
    for level in reversed(range(levels)):
        side = net.image_shape[0] >> level
        name = f"decoder_{side}x{side}"
        attends = side in net.attention_resolutions
        if level == levels - 1:
            h = run(run(h, f"{name}_in0", attends=True), f"{name}_in1")
        else:
            h = run(h, f"{name}_up", resample="up")
        for index in range(net.num_blocks + 1):
            h = np.concatenate([h, skips.pop()], axis=-1)
            last = index == net.num_blocks
            h = run(h, f"{name}_block{index}", attends=attends and last)
        if net.decoder_type == "skip" or level == 0:
            if level < levels - 1 and net.decoder_type == "skip":
                image = upsample(image, taps)
            normed = silu(group_norm(h, layers[f"{name}_aux_norm"]))
            image = image + convolution(normed, layers[f"{name}_aux_conv"], 1)
    assert not skips
    return image
