"""Published checkpoints, and what one does with them."""

from keras_imm.checkpoints.fine_tuning import with_num_classes
from keras_imm.checkpoints.official import load_official

__all__ = ["load_official", "with_num_classes"]
