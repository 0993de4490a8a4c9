"""What a run wants during `fit`: pictures, sample quality and checkpoints."""

from keras_imm.callbacks.sample_images import SampleImages, pixels_to_uint8
from keras_imm.callbacks.sample_metrics import SampleMetrics
from keras_imm.callbacks.sampling import Sampling
from keras_imm.callbacks.terminate_on_non_finite import TerminateOnNonFinite
from keras_imm.callbacks.training_checkpoint import TrainingCheckpoint

__all__ = [
    "SampleImages",
    "SampleMetrics",
    "Sampling",
    "TerminateOnNonFinite",
    "TrainingCheckpoint",
    "pixels_to_uint8",
]
