"""A network whose exporting process finds no room on the disk, or is killed there."""

import errno
import os
import signal
import sys

import keras

import keras_imm

FAULT = "KERAS_IMM_TESTS_FAULT"


@keras.saving.register_keras_serializable(package="faulty_disk")
class SmallDiT(keras_imm.backbones.DiT):
    """A network that has the exporting process import this module."""


def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(descriptor):
    os.kill(os.getpid(), signal.SIGKILL)


if getattr(sys.modules["__main__"].__spec__, "name", "") == "keras_imm.serving.child":
    os.fsync = {"full": full, "killed": killed}[os.environ[FAULT]]
