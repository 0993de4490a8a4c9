"""Lowers a train step that eight devices share, for platforms that are not here."""

import json
import pathlib
import sys

import jax
import keras
from backend.jax import lowered

import keras_imm


def main(folder):
    mesh = keras.distribution.DeviceMesh((4, 2), ("batch", "model"))
    strategy = keras.distribution.ModelParallel(
        layout_map=keras_imm.backbones.DiT.layout_map(mesh), batch_dim_name="batch"
    )
    keras.distribution.set_distribution(strategy)
    data = tuple(
        jax.device_put(x, strategy.get_data_layout(x.shape).backend_layout)
        for x in lowered.batch()
    )
    seen = {}
    for policy in ("float32", "mixed_bfloat16"):
        step, arguments = lowered.train_step(lowered.model(policy), data)
        seen[policy] = {
            platform: lowered.lowered(step, arguments, platform)
            for platform in ("tpu", "cuda")
        }
    (pathlib.Path(folder) / "seen.json").write_text(json.dumps(seen))


main(sys.argv[1])
