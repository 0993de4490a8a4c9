"""Files of an autoencoder with seeded weights, in diffusers' layout."""

import pathlib

import numpy as np
from safetensors.numpy import save_file

GOLDEN = pathlib.Path(__file__).parent / "data" / "vae.npz"
EARLIER = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
}


def seeded_weights():
    """The recipe of the golden file: one draw per name, in order."""
    with np.load(GOLDEN) as golden:
        names, shapes = golden["names"].tolist(), golden["shapes"].tolist()
    rng = np.random.default_rng(1812)
    weights = {}
    for name, text in zip(names, shapes, strict=True):
        name = name.decode()
        shape = tuple(int(n) for n in text.decode().strip("()").split(",") if n)
        z = rng.standard_normal(shape)
        if len(shape) > 1:
            z /= np.sqrt(np.prod(shape[1:]))
        else:
            z *= 0.1
            if "norm" in name and name.endswith(".weight"):
                z += 1
        weights[name] = z.astype("float32")
    return weights


def with_earlier_names(weights):
    """Under the attention's earlier names, as convolutions of one pixel."""
    renamed = {}
    for name, value in weights.items():
        for now, earlier in EARLIER.items():
            if f".{now}." in name:
                name = name.replace(now, earlier)
                value = value[:, :, None, None] if value.ndim == 2 else value
        renamed[name] = value
    return renamed


def write(path, weights):
    save_file({n: np.ascontiguousarray(w) for n, w in weights.items()}, path)
