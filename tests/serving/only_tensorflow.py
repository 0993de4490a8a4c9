"""What a server does, in a process that has TensorFlow and no Keras.

    python only_tensorflow.py SAVED_MODEL INPUTS.npz OUTPUTS.npz

The arrays of INPUTS are named `<signature>/<input>`. OUTPUTS has, for both loaders,
`<loader>/<signature>/<output>`, and what the warm-up file held.
"""

import base64
import json
import sys
from importlib.machinery import PathFinder


class NoKeras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "keras_imm", "tf_keras", "jax", "torch"):
            return None
        return PathFinder.find_spec(name, path, target)


sys.meta_path[:] = [NoKeras if f is PathFinder else f for f in sys.meta_path]


def main():
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    folder, inputs_file, outputs_file = sys.argv[1:]
    requests = {}
    for key, value in np.load(inputs_file).items():
        signature, name = key.split("/")
        requests.setdefault(signature, {})[name] = value
    outputs = {}

    loaded = tf.saved_model.load(folder)
    for signature, inputs in requests.items():
        function = loaded.signatures[signature]
        answer = function(**{k: tf.constant(v) for k, v in inputs.items()})
        for name, value in answer.items():
            outputs[f"load/{signature}/{name}"] = value.numpy()

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        for signature, inputs in requests.items():
            definition = meta_graph.signature_def[signature]
            feed = {definition.inputs[k].name: v for k, v in inputs.items()}
            names = {k: v.name for k, v in definition.outputs.items()}
            for name, value in session.run(names, feed).items():
                outputs[f"session/{signature}/{name}"] = value

    errors = {}
    for label in (-1, 99):
        try:
            loaded.signatures["serving_default"](
                seed=tf.constant([1, 2], tf.int64), label=tf.constant([0, label])
            )
        except tf.errors.InvalidArgumentError as error:
            errors[label] = error.message

    warmed = []
    path = f"{folder}/assets.extra/tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        signature = request.model_spec.signature_name
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        loaded.signatures[signature](**inputs)
        warmed.append(signature)

    for key, value in outputs.items():
        if value.dtype == object:
            outputs[key] = np.array([base64.b64encode(file) for file in value])
    outputs["json"] = json.dumps(
        {
            "signatures": sorted(loaded.signatures),
            "warmed": sorted(warmed),
            "errors": errors,
            "keras": sorted(m for m in sys.modules if m.split(".")[0] == "keras"),
        }
    )
    np.savez(outputs_file, **outputs)


main()
