"""What a run wants during `fit`: pictures, sample quality and checkpoints."""

from keras_imm.callbacks.learning_rate import LearningRate
from keras_imm.callbacks.power_averages import PowerAverages
from keras_imm.callbacks.quality_monitor import QualityMonitor
from keras_imm.callbacks.sample_grid import SampleGrid, pixels_to_uint8
from keras_imm.callbacks.sample_metrics import SampleMetrics
from keras_imm.callbacks.sampling import Sampling
from keras_imm.callbacks.tensorboard import TensorBoard
from keras_imm.callbacks.terminate_on_non_finite import TerminateOnNonFinite
from keras_imm.callbacks.throughput import Throughput
from keras_imm.callbacks.training_checkpoint import TrainingCheckpoint

__all__ = [
    "LearningRate",
    "PowerAverages",
    "QualityMonitor",
    "SampleGrid",
    "SampleMetrics",
    "Sampling",
    "TensorBoard",
    "TerminateOnNonFinite",
    "Throughput",
    "TrainingCheckpoint",
    "pixels_to_uint8",
]
