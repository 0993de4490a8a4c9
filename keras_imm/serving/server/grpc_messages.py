"""The messages of TF Serving's PredictionService, without TensorFlow.

The package tensorflow-serving-api has them, too, but imports TensorFlow for them. What
is declared here has the names and numbers of tensorflow_serving/apis/*.proto and
tensorflow/core/framework/*.proto, as far as Predict and GetModelMetadata use them; what
is left out, protobuf skips.
"""

import numpy as np
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

from keras_imm.serving.server.errors import RequestError

_ANY, _INT64 = ".google.protobuf.Any", ".google.protobuf.Int64Value"
_REPEATED = "repeated "
_MAP = "map "
# Message: {field: (number, type)}, where a type is a name of protobuf's or a message.
_MESSAGES = {
    "tensorflow": {
        "TensorShapeProto.Dim": {"size": (1, "int64"), "name": (2, "string")},
        "TensorShapeProto": {
            "dim": (2, "repeated .tensorflow.TensorShapeProto.Dim"),
            "unknown_rank": (3, "bool"),
        },
        "TensorProto": {
            "dtype": (1, "int32"),  # an enumeration, which is sent as one
            "tensor_shape": (2, ".tensorflow.TensorShapeProto"),
            "tensor_content": (4, "bytes"),
            "float_val": (5, "repeated float"),
            "double_val": (6, "repeated double"),
            "int_val": (7, "repeated int32"),
            "string_val": (8, "repeated bytes"),
            "int64_val": (10, "repeated int64"),
            "bool_val": (11, "repeated bool"),
        },
        "TensorInfo": {
            "name": (1, "string"),
            "dtype": (2, "int32"),
            "tensor_shape": (3, ".tensorflow.TensorShapeProto"),
        },
        "SignatureDef": {
            "inputs": (1, "map .tensorflow.TensorInfo"),
            "outputs": (2, "map .tensorflow.TensorInfo"),
            "method_name": (3, "string"),
        },
    },
    "tensorflow.serving": {
        "ModelSpec": {
            "name": (1, "string"),
            "version": (2, _INT64),
            "signature_name": (3, "string"),
        },
        "PredictRequest": {
            "model_spec": (1, ".tensorflow.serving.ModelSpec"),
            "inputs": (2, "map .tensorflow.TensorProto"),
            "output_filter": (3, "repeated string"),
        },
        "PredictResponse": {
            "outputs": (1, "map .tensorflow.TensorProto"),
            "model_spec": (2, ".tensorflow.serving.ModelSpec"),
        },
        "SignatureDefMap": {"signature_def": (1, "map .tensorflow.SignatureDef")},
        "GetModelMetadataRequest": {
            "model_spec": (1, ".tensorflow.serving.ModelSpec"),
            "metadata_field": (2, "repeated string"),
        },
        "GetModelMetadataResponse": {
            "model_spec": (1, ".tensorflow.serving.ModelSpec"),
            "metadata": (2, f"map {_ANY}"),
        },
    },
}
# NumPy's type: the number of TensorFlow's, and the field of values one by one.
_TYPES = {
    "float32": (1, "float_val"),
    "float64": (2, "double_val"),
    "int32": (3, "int_val"),
    "uint8": (4, "int_val"),
    "object": (7, "string_val"),
    "int64": (9, "int64_val"),
    "bool": (10, "bool_val"),
}
_NAMES = {number: (name, field) for name, (number, field) in _TYPES.items()}


def _field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str
) -> None:
    """Adds a field; a map is a repeated message of key and value."""
    field = message.field.add(name=name, number=number, label=1)
    if kind.startswith(_MAP):
        entry = message.nested_type.add(
            name="".join(map(str.capitalize, name.split("_"))) + "Entry"
        )
        entry.options.map_entry = True
        _field(entry, "key", 1, "string")
        _field(entry, "value", 2, kind.removeprefix(_MAP))
        kind = f"{_REPEATED}{entry.name}"
    if kind.startswith(_REPEATED):
        field.label, kind = 3, kind.removeprefix(_REPEATED)
    types = descriptor_pb2.FieldDescriptorProto.Type
    if f"TYPE_{kind.upper()}" in types.keys():  # noqa: SIM118, no dictionary
        field.type = types.Value(f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = types.Value("TYPE_MESSAGE"), kind


def _classes() -> dict[str, type]:
    """The messages of both packages, by their names, in a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    classes, before = {}, []
    for package, messages in _MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"{package}.proto", package=package, syntax="proto3"
        )
        file.dependency.extend(
            [any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name, *before]
        )
        before.append(file.name)
        made = {}
        for name in sorted(messages):  # a message before those in it
            parent, _, own = name.rpartition(".")
            where = made[parent].nested_type if parent else file.message_type
            made[name] = where.add(name=own)
            for field, (number, kind) in messages[name].items():
                _field(made[name], field, number, kind)
        pool.Add(file)
        for name in messages:
            found = pool.FindMessageTypeByName(f"{package}.{name}")
            classes[name] = message_factory.GetMessageClass(found)
    return classes


_CLASSES = _classes()
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
GetModelMetadataRequest = _CLASSES["GetModelMetadataRequest"]
GetModelMetadataResponse = _CLASSES["GetModelMetadataResponse"]
SignatureDefMap = _CLASSES["SignatureDefMap"]


def type_number(dtype: np.dtype) -> int:
    """TensorFlow's number of a type of NumPy's."""
    return _TYPES[dtype.name][0]


def array_of(name: str, proto: object, max_bytes: int = 2**31) -> np.ndarray:
    """The array of a `TensorProto`.

    As in TensorFlow the last of fewer values than the shape has stands for the rest.

    Args:
        name: What messages call it.
        proto: The message.
        max_bytes: The most bytes that so few values become.

    Raises:
        RequestError: If its type is not known, it has no or too many values, or would
            be larger than `max_bytes`.
    """
    if proto.dtype not in _NAMES:
        raise RequestError(
            f"`{name}` must be of a type that the server knows. "
            f"Received: dtype={proto.dtype}"
        )
    dtype, field = _NAMES[proto.dtype]
    dtype = np.dtype(dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    refused = RequestError(f"`{name}` must have as many values as its shape {shape}.")
    if min(shape, default=0) < 0 or max(shape, default=0) > 2**31:
        raise refused
    size = int(np.prod(shape, dtype=object))
    if proto.tensor_content:
        if dtype.kind == "O" or len(proto.tensor_content) != size * dtype.itemsize:
            raise refused
        flat = np.frombuffer(proto.tensor_content, dtype.newbyteorder("<"))
        return flat.astype(dtype).reshape(shape)
    values = getattr(proto, field)
    given = len(values)
    is_filled = 0 < given < size and size * dtype.itemsize <= max_bytes
    if given != size and not is_filled:
        raise refused
    flat = np.empty(size, dtype)
    flat[:given] = values
    if is_filled:
        flat[given:] = values[-1]
    return flat.reshape(shape)


def fill(proto: object, array: np.ndarray) -> None:
    """Writes an array into a `TensorProto`."""
    proto.dtype = type_number(array.dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.string_val.extend(array.ravel().tolist())
    else:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        proto.tensor_content = little.tobytes()
