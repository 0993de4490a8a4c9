"""Model repositories, read as Triton reads them: its schema, and ONNX Runtime."""

import numpy as np
import pytest
from served_models import GUIDANCE, rows, trained_model

from keras_imm.serving import export_triton, from_noise

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
}
same_everywhere = pytest.mark.one_backend("what is written is the same on all backends")


def config_of(folder):
    """`config.pbtxt` by Triton's own definitions."""
    model_config_pb2 = pytest.importorskip("tritonclient.grpc").model_config_pb2
    from google.protobuf import text_format

    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(), config)
    return config


def assert_describes(config, session):
    """The names, types and shapes that a graph of any batch has."""
    from tritonclient.grpc.model_config_pb2 import DataType

    for given, graph in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [one.name for one in given] == [one.name for one in graph]
        for one, port in zip(given, graph, strict=True):
            assert DataType.Name(one.data_type) == TYPES[port.type]
            rest = [] if one.HasField("reshape") else list(one.dims)
            assert ["batch", *rest] == port.shape
            assert one.dims  # Triton refuses none


@pytest.mark.slow("exports")
@same_everywhere
def test_a_repository_is_what_triton_reads(model, tmp_path):
    import onnxruntime

    options = {"guidance_scale": GUIDANCE, "value_range": (-20, 20)}
    version = export_triton(
        model,
        tmp_path / "models",
        "digits",
        (1, 2),
        **options,
        max_batch_size=16,
        preferred_batch_sizes=(4, 8),
        max_queue_delay_microseconds=500,
        more_config="instance_group { count: 2 kind: KIND_CPU }\n",
    )
    folder = tmp_path / "models" / "digits"
    assert version == folder / "1"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.pbtxt"]
    config = config_of(folder)
    assert (config.name, config.backend) == ("digits", "onnxruntime")
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.instance_group[0].count == 2
    session = onnxruntime.InferenceSession(version / "model.onnx")
    assert_describes(config, session)
    count = config.max_batch_size
    _, label = rows(count)
    feed = {
        "seed": np.arange(count),
        "label": label,
        "guidance_scale": np.full(count, GUIDANCE, "float32"),
        "num_steps": np.full(count, 2, "int32"),
    }
    (images,) = session.run(None, feed)
    for row in (0, count - 1):  # whatever is batched with it
        (image,) = session.run(None, {k: v[row : row + 1] for k, v in feed.items()})
        np.testing.assert_allclose(image[0].astype(int), images[row], atol=1)


def written(export, task, framework, write, path, **options):
    path.write_text(task)


@same_everywhere
def test_versions_count_up_and_have_one_configuration(model, tmp_path, monkeypatch):
    monkeypatch.setattr(from_noise.Export, "write", written)
    paths = [
        export_triton(
            model, tmp_path, "digits", 1, version=version, max_batch_size=size
        )
        for version, size in ((None, 8), (None, 16), (7, 8), (None, 4))
    ]
    assert [path.name for path in paths] == ["1", "2", "7", "8"]
    assert all((path / "model.onnx").exists() for path in paths)
    assert config_of(tmp_path / "digits").max_batch_size == 4
    assert not config_of(tmp_path / "digits").dynamic_batching.preferred_batch_size
    with pytest.raises(ValueError, match="`version` must be new"):
        export_triton(model, tmp_path, "digits", 1, version=7)


@same_everywhere
def test_rows_of_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(from_noise.Export, "write", written)
    export_triton(trained_model(num_classes=0), tmp_path, "a", 1, inputs="noise")
    config = config_of(tmp_path / "a")
    ports = [(one.name, list(one.dims)) for one in (*config.input, *config.output)]
    assert ports == [("noise", [4, 4, 1]), ("image", [4, 4, 1])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../a"}, "`name` must consist of"),
        ({"name": ".a"}, "`name` must consist of"),
        ({"name": ""}, "`name` must consist of"),
        ({"max_batch_size": 0}, "`max_batch_size` must be an integer"),
        ({"max_queue_delay_microseconds": -1}, "`max_queue_delay_microseconds` must"),
        ({"preferred_batch_sizes": (0,)}, "`preferred_batch_sizes` must"),
        ({"preferred_batch_sizes": (65,)}, "`preferred_batch_sizes` must be at most"),
        ({"version": 0}, "`version` must be an integer"),
        ({"inputs": "pictures"}, "`inputs` must be one of"),
        ({"dtype": "int8"}, "`dtype` must be one of"),
        ({"num_steps": 0}, "`num_steps` must be"),
        ({"sampler": "restart", "inputs": "noise"}, "`sampler` must take no noise"),
    ],
)
def test_arguments(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_triton(model, tmp_path / "models", **{"name": "a"} | options)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_what_was_there(model, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr(from_noise.Export, "write", fail)
    with pytest.raises(RuntimeError, match="no room"):
        export_triton(model, tmp_path, "a")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(from_noise.Export, "write", written)
    export_triton(model, tmp_path, "a")
    before = (tmp_path / "a" / "config.pbtxt").read_text()
    monkeypatch.setattr(from_noise.Export, "write", fail)
    with pytest.raises(RuntimeError, match="no room"):
        export_triton(model, tmp_path, "a", guidance_scale=2.0)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["1", "config.pbtxt"]
    assert (tmp_path / "a" / "config.pbtxt").read_text() == before
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="`name` must be new, or a model"):
        export_triton(model, tmp_path, "other")
