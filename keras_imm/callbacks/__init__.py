"""What a run wants to see during `fit`: pictures and sample quality."""

from keras_imm.callbacks.sample_images import SampleImages, pixels_to_uint8
from keras_imm.callbacks.sample_metrics import SampleMetrics
from keras_imm.callbacks.sampling import Sampling

__all__ = ["SampleImages", "SampleMetrics", "Sampling", "pixels_to_uint8"]
