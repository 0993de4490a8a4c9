"""Optimizers that Keras does not have."""

from keras_imm.optimizers.radam import RAdam

__all__ = ["RAdam"]
