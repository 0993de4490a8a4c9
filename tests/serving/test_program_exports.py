"""Samplers from noise in other runtimes, without Keras, against `generate`."""

import functools
import shutil

import keras
import numpy as np
import program_answers
import pytest
from keras import ops
from long_tests import long
from served_models import GUIDANCE, on_tensorflow, rows, trained_model
from small_dit import small_dit

import keras_imm
from keras_imm.samplers import SamplingPlan
from keras_imm.serving import (
    export_litert,
    export_openvino,
    export_stablehlo,
    export_torch,
)

COUNTS = (1, 3, 7)
EXPORTS = {
    "torch": (export_torch, "model.pt2"),
    "jax": (export_stablehlo, "model.jax"),
    "openvino": (export_openvino, "model"),
    "litert": (export_litert, "model.tflite"),
    "aot": (functools.partial(export_torch, compiled=True), "model.pt2"),
}
# The backend that writes it itself: under the others a child process does.
WRITERS = {"torch": "torch", "jax": "jax", "openvino": "torch", "litert": "tensorflow"}
OWN = [one for one, writer in WRITERS.items() if writer == keras.backend.backend()]
OTHERS = [one for one in WRITERS if one not in OWN]
each = pytest.mark.parametrize("framework", list(WRITERS))


def by_its_writer(*frameworks):
    """Parametrizes over frameworks, or tuples of one and more, each on one backend."""
    cases = [one if isinstance(one, tuple) else (one,) for one in frameworks]
    reason = "what is written is the same on all backends"
    marked = [
        pytest.param(
            *case, marks=pytest.mark.one_backend(reason, backend=WRITERS[case[0]])
        )
        for case in cases
    ]
    names = ("framework", "weights", "which")[: len(cases[0])]
    return pytest.mark.parametrize(names, marked)


def inputs_of(count, conditional=True, scale=None):
    noise, label = rows(count)
    inputs = [noise, label] if conditional else [noise]
    return inputs if scale is None else [*inputs, np.full(count, scale, "float32")]


def answers(framework, path, **options):
    """What a process without Keras makes of rows of every count."""
    groups = {count: inputs_of(count, **options) for count in COUNTS}
    return program_answers.answers(framework, path, groups)


def expected(model, count, scale=None, **options):
    noise, label = rows(count)
    labels = label if model.num_classes else None
    return model.generate(
        labels, noise=noise, guidance_scale=scale, verbose=0, **options
    )


@pytest.mark.slow("exports, and processes that run them")
@pytest.mark.parametrize(
    "framework",
    [*OWN, *long("a child process writes it as its own backend does", *OTHERS)],
)
def test_samples_are_those_of_generate_for_any_number_of_rows(
    model, tmp_path, framework
):
    export, name = EXPORTS[framework]
    path = export(model, tmp_path / name, 2, guidance_scale=GUIDANCE)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    found, printed = answers(framework, path, scale=GUIDANCE)
    for count in COUNTS:
        assert found[count].dtype == np.float32
        np.testing.assert_allclose(
            found[count],
            expected(model, count, GUIDANCE, num_steps=2),
            rtol=1e-4,
            atol=1e-4,
        )
    if framework == "jax":
        assert printed == ["cpu", "cuda", "tpu"]


@pytest.mark.slow("exports, and processes that run them")
@by_its_writer(*WRITERS)
@pytest.mark.parametrize(
    "options",
    [
        {"guidance_interval": (0.3, 0.7), "guidance_scale": 3.0, "num_steps": 4},
        *long(
            "one option is tested",
            {"sampler": "heun", "time_grid": "edm", "num_steps": 3},
            {"time_grid": [1.4, 0.5]},
            {"weights": "raw", "num_steps": 1},
        ),
    ],
)
def test_samplers_intervals_grids_and_weights(model, tmp_path, framework, options):
    export, name = EXPORTS[framework]
    scale = options.get("guidance_scale")
    found, _ = answers(
        framework, export(model, tmp_path / name, **options), scale=scale
    )
    given = {k: v for k, v in options.items() if k != "guidance_scale"}
    for count in COUNTS:
        np.testing.assert_allclose(
            found[count], expected(model, count, scale, **given), atol=1e-3
        )


@pytest.mark.slow("exports, and processes that run them")
@by_its_writer(*WRITERS)
def test_models_without_labels_with_plans(tmp_path, framework):
    export, name = EXPORTS[framework]
    model = trained_model(num_classes=0)
    model.sampling_plan = SamplingPlan(num_steps=3)
    found, _ = answers(framework, export(model, tmp_path / name), conditional=False)
    for count in COUNTS:
        np.testing.assert_allclose(found[count], expected(model, count), atol=1e-3)


@pytest.mark.slow("exports, and processes that run them")
@pytest.mark.long("ONNX is tested")
@by_its_writer(*WRITERS)
def test_half_precision(tmp_path, framework):
    export, name = EXPORTS[framework]
    model = trained_model(num_classes=0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = keras_imm.IMM(
            type(model.backbone).from_config(
                {**model.backbone.get_config(), "dtype": "mixed_bfloat16"}
            )
        )
        half.set_weights(model.get_weights()[: len(half.get_weights())])
    finally:
        keras.config.set_dtype_policy("float32")
    found, _ = answers(framework, export(half, tmp_path / name), conditional=False)
    for count in COUNTS:
        assert found[count].dtype == np.float32
        one = expected(half, count)
        error = np.sqrt(np.mean((found[count] - one) ** 2))
        assert error < 0.02 * np.sqrt(np.mean(one**2))


@pytest.mark.slow("a C++ compiler")
@pytest.mark.one_backend("what is written is the same on all backends")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_package_of_aot_inductor(model, tmp_path):
    export, name = EXPORTS["aot"]
    found, _ = answers("aot", export(model, tmp_path / name, 2))
    for count in COUNTS:
        np.testing.assert_allclose(
            found[count], expected(model, count, num_steps=2), atol=1e-3
        )


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be"),
        ({"num_steps": (1, 2)}, "`num_steps` must be"),
        ({"sampler": "restart"}, "`sampler` must take no noise after the first"),
        ({"weights": "best"}, "`weights` must be one of"),
        ({"guidance_scale": "high"}, "`guidance_scale` must"),
        ({"time_grid": "cosine"}, "`time_grid` must be"),
    ],
)
def test_wrong_arguments_are_refused_early(
    model, tmp_path, framework, options, message
):
    export, name = EXPORTS[framework]
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "below" / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("export", "name", "options", "message"),
    [
        (export_torch, "model.onnx", {}, r'`path` must end in "\.pt2"'),
        (export_stablehlo, "model.pt2", {}, r'`path` must end in "\.jax"'),
        (export_torch, "a.pt2", {"compiled": 1}, "`compiled` must be True or False"),
        (export_stablehlo, "a.jax", {"platforms": "cpu"}, "`platforms` must be some"),
        (export_stablehlo, "a.jax", {"platforms": []}, "`platforms` must be some"),
        (export_stablehlo, "a.jax", {"platforms": ["cpu"] * 2}, "each once"),
        (export_stablehlo, "a.jax", {"platforms": ["gpu"]}, r"platforms=\['gpu'\]"),
        (export_openvino, "a", {"dtype": "int8"}, "`dtype` must be one of"),
        (export_litert, "a.tflite", {"dtype": "int8"}, "`dtype` must be one of"),
        (export_litert, "a.lite", {}, r'`path` must end in "\.tflite"'),
    ],
)
def test_what_each_of_them_refuses(model, tmp_path, export, name, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("framework", ["jax", "litert"])
def test_weights_that_no_file_holds(model, tmp_path, framework, monkeypatch):
    from keras_imm.serving import litert_export, stablehlo_export

    for module in (litert_export, stablehlo_export):
        monkeypatch.setattr(module, "_LARGEST", 1000)
    export, name = EXPORTS[framework]
    with pytest.raises(ValueError, match="weights of less than 2 GB"):
        export(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.one_backend("reads policies")
@pytest.mark.parametrize(
    ("framework", "dtype", "message"),
    [
        ("openvino", "int8", "must not be quantized to become OpenVINO.*int8_from_flo"),
        ("litert", "int8", "policies.* to become LiteRT.*one of 'int8_from_float32'"),
        ("litert", "float64", "policies.* to become LiteRT.*one of 'float64'"),
    ],
)
def test_policies_that_a_runtime_does_not_know(tmp_path, framework, dtype, message):
    model = keras_imm.IMM(
        small_dit(num_classes=0, dtype=None if dtype == "int8" else dtype)
    )
    if dtype == "int8":
        model.quantize("int8")
    export, name = EXPORTS[framework]
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / name, 1)
    assert not list(tmp_path.iterdir())


@on_tensorflow
@pytest.mark.parametrize("policy", ["bfloat16", "mixed_float16"])
def test_litert_computes_in_float32(tmp_path, policy):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    half, whole = (keras_imm.IMM(small_dit(dtype=name)) for name in (policy, "float32"))
    rng = np.random.default_rng(0)
    for one, other in zip(half.flow.variables, whole.flow.variables, strict=True):
        one.assign(one + 0.3 * rng.standard_normal(one.shape))
        other.assign(ops.cast(one, "float32"))
    path = export_litert(half, tmp_path / "model.tflite", 1)
    noise, label = rows(3)
    runner = interpreter.Interpreter(str(path)).get_signature_runner()
    found = runner(noise=noise, label=label)["image"]
    one = whole.generate(label, noise=noise, num_steps=1, verbose=0)
    np.testing.assert_allclose(found, one, atol=1e-3)
    assert np.std(one) > 0.1


@pytest.mark.slow("exports, and processes that run them")
@by_its_writer("torch", "jax")
def test_quantized_models(tmp_path, framework):
    model = trained_model()
    model.quantize("int8")
    export, name = EXPORTS[framework]
    found, _ = answers(framework, export(model, tmp_path / name, 1))
    for count in COUNTS:
        one = expected(model, count, num_steps=1)
        np.testing.assert_allclose(found[count], one, atol=1e-4)


def rounded(model, which):
    """A model of averages of which some are numbers of half precision."""
    copy = keras_imm.IMM.from_config(model.get_config())
    values = model.weights_for_sampling("ema")
    for variable, value in zip(copy.flow.variables, values, strict=True):
        value = ops.convert_to_numpy(value)
        is_weight = value.dtype == np.float32 and which(value)
        variable.assign(value.astype("float16") if is_weight else value)
    return copy


@pytest.mark.slow("exports, and a process that runs them")
@by_its_writer(
    ("openvino", "model.bin", lambda value: True),
    ("litert", "", lambda value: np.sum(np.array(value.shape) > 1) > 1),
)
def test_weights_of_half_the_size(model, tmp_path, framework, weights, which):
    export, name = EXPORTS[framework]
    path = export(model, tmp_path / name, 2)
    whole = (tmp_path / name / weights).stat().st_size
    assert export(model, tmp_path / name, 2, dtype="float16") == path
    saved = whole - (tmp_path / name / weights).stat().st_size
    shapes = [v.shape for v in model.flow.variables if which(v)]
    assert saved > 0.9 * 2 * sum(map(np.prod, shapes))
    found, _ = answers(framework, path)
    narrow = rounded(model, which)
    for count in COUNTS:
        one = expected(narrow, count, num_steps=2)
        np.testing.assert_allclose(found[count], one, rtol=1e-3, atol=1e-3)


def test_openvinos_folder_is_replaced_if_there_is_nothing_else_in_it(model, tmp_path):
    for name in ("model.xml", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"where there is 'notes\.txt'"):
        export_openvino(model, tmp_path, 2)


def test_what_is_missing_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras_imm\[openvino\]"):
        export_openvino(model, tmp_path / "model")
    with pytest.raises(ImportError, match=r"keras_imm\[stablehlo\]"):
        export_stablehlo(model, tmp_path / "model.jax")
    assert not list(tmp_path.iterdir())


@on_tensorflow
def test_operations_that_litert_has_not_are_an_error(tmp_path):
    inputs = [keras.Input((4, 4, 1)), keras.Input(()), keras.Input(())]
    outputs = ops.erfinv(ops.tanh(inputs[0]))
    model = keras_imm.IMM(keras.Model(inputs, outputs))
    with pytest.raises(RuntimeError, match=r"(?s)LiteRT cannot run.*Erfinv"):
        export_litert(model, tmp_path / "model.tflite", 1)
    assert not list(tmp_path.iterdir())
