"""Runs examples/imagenet.py on a TPU or GPU of Google Cloud, by Kinetic.

    pip install keras-kinetic && kinetic init
    python examples/kinetic_imagenet.py --latents=gs://bucket/latents/ -- --flip

What stands after `--` is handed to examples/imagenet.py. --latents is what
examples/encode_latents.py wrote, copied to a bucket; Kinetic mounts it. The results are
copied to the job's folder in Kinetic's bucket when the training has ended: a job that
is lost starts anew.

Not run on Google Cloud yet: the test puts functions of its own in Kinetic's place.
"""

import os
import pathlib
import subprocess
import sys

import kinetic
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("latents", None, "Folder of latents, gs://...", required=True)
flags.DEFINE_string("accelerator", "tpu-v5litepod-8", "As Kinetic names it.")

MOUNTED = "/latents"
OUT = "runs/imagenet"


def upload(folder, address):
    """Copies a folder into a bucket: gs://bucket/path."""
    from google.cloud import storage

    name, _, prefix = address.removeprefix("gs://").partition("/")
    bucket = storage.Client().bucket(name)
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file():
            blob = f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}"
            bucket.blob(blob.lstrip("/")).upload_from_filename(str(path))


def train(arguments):
    """Trains where it is called, in a copy of this project, and uploads the results."""
    places = [pathlib.Path(place) for place in (os.getcwd(), *sys.path)]
    root = next(p for p in places if (p / "examples" / "imagenet.py").exists())
    command = [sys.executable, "examples/imagenet.py", f"--data_dir={MOUNTED}"]
    subprocess.run(
        [*command, f"--out={OUT}", *arguments],
        cwd=root,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)},
        check=True,
    )
    if output := os.environ.get("KINETIC_OUTPUT_DIR"):
        upload(root / OUT, output)
    return output


def main(arguments):
    remote = kinetic.run(
        accelerator=FLAGS.accelerator,
        volumes={MOUNTED: kinetic.Data(FLAGS.latents, fuse=True)},
    )(train)
    print("The results are in", remote(arguments[1:]))


if __name__ == "__main__":
    app.run(main)
