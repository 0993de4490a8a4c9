"""Makes a preset of the library from a finished run of an example.

    python benchmarks/ship_preset.py --run=runs/digits --name=imm_digits
    python -m keras_imm.presets measure imm_digits

The run's folder has model.keras and metrics.json. The preset has the averaged weights
in half precision; its card has data, licence, command, seed and the quality measured
again on those weights, in the way `keras_imm.presets` measures.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import json
import pathlib

import keras
from absl import app, flags

from keras_imm.files.presets import BUILT_IN
from keras_imm.presets.__main__ import quality
from keras_imm.samplers import SamplingPlan

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "Folder of the run.", required=True)
flags.DEFINE_string("name", None, "Name of the preset.", required=True)
flags.DEFINE_string("folder", str(BUILT_IN), "Folder of the presets.")
flags.DEFINE_integer("num_steps", 2, "Steps that the preset samples in.")
flags.DEFINE_float(
    "guidance_scale", None, "Guidance that the preset samples with. Default: the run's."
)
flags.DEFINE_list("steps", "1,2,4,8", "Numbers of steps to measure.")

DATA = {
    "digits_v1": {
        "data": "the 1,797 digits of scikit-learn (UCI optical recognition of "
        "handwritten digits)",
        "licence": "CC BY 4.0",
        "samples": 4000,
    },
    "fashion_mnist_v1": {
        "data": "the 60,000 training images of Fashion-MNIST (Xiao, Rasul, Vollgraf, "
        "arXiv:1708.07747)",
        "licence": "MIT",
        "samples": 10_000,
    },
}


def guidance(about):
    """How the samples are guided, in words."""
    scale = about["guidance_scale"]
    if scale is None:
        return "no guidance"
    return f"guidance {scale:g}, for which a step evaluates the network twice"


def card(name, about):
    """The model card, Markdown."""
    rows = about["quality"]
    names = [column for column in rows[0] if column != "steps"]
    lines = [
        f"# {name}",
        "",
        f"{about['parameters']:,} weights, trained from scratch with the objective "
        f"`{about['method']}` on {about['data']}; licence of the data: "
        f"{about['licence']}. The weights are under the licence of keras_imm.",
        "",
        f"Trained with {about['backend']}, seed {about['seed']}, in "
        f"{about['seconds']:.0f} s of steps on {about['cpus']} cores:",
        "",
        f"    {about['command']}",
        "",
        f"Quality ({about['measure']}, {about['samples']:,} samples with uniform "
        f"labels, averaged weights in half precision, {guidance(about)}); "
        f"`python -m keras_imm.presets measure {name}` computes it again:",
        "",
        f"| steps | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
        *(
            f"| {row['steps']} | {' | '.join(f'{row[n]:.4f}' for n in names)} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def main(_):
    run = pathlib.Path(FLAGS.run)
    metrics = json.loads((run / "metrics.json").read_text())
    measure = metrics.get("measure", "digits_v1")
    model = keras.saving.load_model(run / "model.keras")
    plan = model.sampling_plan or SamplingPlan()
    plan = dataclasses.replace(plan, num_steps=FLAGS.num_steps)
    model.sampling_plan = plan.with_arguments(guidance_scale=FLAGS.guidance_scale)
    seconds = metrics["seconds"]
    about = {
        **DATA[measure],
        "measure": measure,
        "noise_seed": 0,
        "method": metrics["method"],
        "backend": metrics["backend"],
        "versions": metrics["versions"],
        "command": metrics["command"],
        "flags": metrics["flags"],
        "seed": metrics["flags"]["seed"],
        "parameters": metrics["parameters"],
        "cpus": metrics["cpus"],
        "seconds": seconds.get("of_epochs", seconds.get("fit")),
        "guidance_scale": model.sampling_plan.guidance_scale,
        "quality": [{"steps": int(n)} for n in FLAGS.steps],
    }
    folder = pathlib.Path(FLAGS.folder) / FLAGS.name
    model.save_to_preset(folder, description=about)
    about["quality"] = quality(str(folder))  # of the weights that are on the disk
    text = card(FLAGS.name, about)
    model.save_to_preset(folder, description=about, model_card=text)
    print(text)


if __name__ == "__main__":
    app.run(main)
