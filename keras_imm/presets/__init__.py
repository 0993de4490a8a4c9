"""Trained models that come with the library, a folder each, and what is known of them.

`keras_imm.FlowMapModel.from_preset` makes them.
"""

from keras_imm.files.presets import metadata, names, upload_preset

__all__ = ["metadata", "names", "upload_preset"]
