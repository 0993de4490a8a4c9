import itertools
import json
import os
import pathlib
import sys

import huggingface_hub
import keras
import numpy as np
import pytest
from hostile_files import attacks, mutations
from published_files import write_checkpoint

import keras_imm
from keras_imm.checkpoints import load_official
from keras_imm.checkpoints.__main__ import main

pytestmark = pytest.mark.slow("builds a network for each file")

GOLDEN = pathlib.Path(__file__).parents[1] / "data/golden"
DIT = GOLDEN / "dit_euler_fm_stride.pkl"
UNET = GOLDEN / "unet_ddpmpp_simple_edm.pkl"
TOLERANCES = {DIT: 1e-5, UNET: 1e-4}


def channels_last(x):
    return np.moveaxis(x, -3, -1)


def golden(path):
    """Arguments and weights of a golden file, by their published names."""
    arrays = dict(np.load(path.with_suffix(".npz")))
    weights = {
        name.removeprefix("weight/"): value
        for name, value in arrays.items()
        if name.startswith("weight/")
    }
    return json.loads(str(arrays["config_json"])), weights


# -- What a file becomes


@pytest.mark.parametrize("path", TOLERANCES, ids=lambda path: path.stem)
def test_golden_samples(path):
    arrays = dict(np.load(path.with_suffix(".npz")))
    model = load_official(path)
    condition = {"num_samples": 4}
    if model.num_classes:
        condition = {"labels": arrays["labels"], "guidance_scale": 1.5}
    for num_steps in (1, 2, 4, 8):
        images = model.generate(
            num_steps=num_steps,
            noise=channels_last(arrays["latents"]) / model.sigma_data,
            **condition,
        )
        expected = channels_last(arrays[f"pushforward_uniform_{num_steps}"])
        np.testing.assert_allclose(images, expected, atol=TOLERANCES[path])


def test_settings_of_the_file():
    dit, unet = load_official(DIT), load_official(UNET)
    assert dit.schedule.get_config() == {}
    assert type(dit.parameterization).__name__ == "EulerFM"
    assert (dit.second_time, dit.time_scale) == ("stride", 1000.0)
    assert (dit.min_time, dit.max_time, dit.sigma_data) == (0.0, 0.994, 0.5)
    assert type(unet.parameterization).__name__ == "SimpleEDM"
    assert (unet.second_time, unet.min_time) == ("s", 0.006)
    assert unet.backbone.dropout == 0.2
    assert not dit.compiled


@pytest.mark.parametrize(
    "name", ["dit_simple_edm_cosine", "dit_identity_fm", "unet_ncsnpp_simple_edm"]
)
def test_a_written_file_is_read_as_it_was(tmp_path, name):
    """The other golden networks, in the layout of the published files."""
    arguments, weights = golden(GOLDEN / name)
    write_checkpoint(tmp_path / "model.pkl", arguments, weights)
    model = load_official(tmp_path / "model.pkl")
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    labels = arrays["labels"] if model.num_classes else None
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"), labels)
    out = keras.ops.convert_to_numpy(out)
    np.testing.assert_allclose(out, channels_last(arrays["flow_map"]), atol=3e-5)


def test_attributes_in_use_win_over_what_the_constructor_was_given(tmp_path):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    write_checkpoint(path, arguments, weights, T=np.float64(0.9), temb_type="identity")
    model = load_official(path)
    assert (model.max_time, model.second_time) == (0.9, "s")


def test_half_precision_weights(tmp_path):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    half = {
        name: value if name == "model.pos_embed" else value.astype("float16")
        for name, value in weights.items()
    }
    write_checkpoint(path, arguments, half)
    kernel = load_official(path).backbone.blocks[0].mlp_hidden.kernel
    assert keras.backend.standardize_dtype(kernel.dtype) == "float32"
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(kernel).T, half["model.blocks.0.mlp.fc1.weight"]
    )


def test_bfloat16_storages(tmp_path):
    import torch

    from keras_imm.files.torch_storage import read_storage

    values = torch.linspace(-3, 3, 7).to(torch.bfloat16)
    path = tmp_path / "storage"
    torch.save(values.storage(), path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(
        read_storage(path.read_bytes()), values.to(torch.float32).numpy()
    )


def test_overrides_and_dtype():
    mapping = keras_imm.time_mappings.EtaDecrement(k=9)
    model = load_official(
        DIT, dtype="mixed_bfloat16", second_time="s", time_mapping=mapping
    )
    assert model.second_time == "s"
    assert model.time_mapping is mapping
    assert model.backbone.compute_dtype == "bfloat16"


def test_class_and_augmentation_labels_of_a_unet(tmp_path):
    arguments, weights = golden(UNET)
    rng = np.random.default_rng(0)
    weights["model.map_label.weight"] = rng.standard_normal((16, 5)).astype("f4")
    weights["model.map_label.bias"] = rng.standard_normal(16).astype("f4")
    weights["model.map_augment.weight"] = rng.standard_normal((16, 9)).astype("f4")
    arguments |= {"label_dim": 5, "augment_dim": 9}
    write_checkpoint(tmp_path / "model.pkl", arguments, weights)
    backbone = load_official(tmp_path / "model.pkl").backbone
    for variable, name in (
        (backbone.label_dense.kernel, "map_label.weight"),
        (backbone.augmentation_dense.kernel, "map_augment.weight"),
    ):
        value = keras.ops.convert_to_numpy(variable)
        np.testing.assert_array_equal(value.T, weights[f"model.{name}"])


# -- What is refused


def spoil_missing(arguments, weights):
    del weights["model.blocks.1.attn.qkv.bias"]


def spoil_shape(arguments, weights):
    weights["model.blocks.1.attn.qkv.bias"] = np.zeros(7, "f4")


def spoil_nan(arguments, weights):
    weights["model.blocks.1.attn.qkv.bias"] = np.full(144, np.nan, "f4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_missing, r"'blocks.1.attn.qkv.bias' of shape \(144,\) is missing"),
        (spoil_shape, r"'blocks.1.attn.qkv.bias' must have shape \(144,\).*\(7,\)"),
        (
            spoil_nan,
            r"'model.blocks.1.attn.qkv.bias' has values that are not finite, or",
        ),
        ({"s_embed": False}, "no second time input"),
        ({"model_type": "ADM"}, "'ADM' is not one of 'DiT', 'SongUNet'"),
        ({"temb_type": "r"}, "'temb_type' must be one of 'identity', 'stride'"),
        ({"noise_schedule": None}, "'noise_schedule' must be one of 'fm', 'vp_cosine'"),
        ({"T": 2.0}, "max_time"),
        ({"hidden_size": 10**9}, "at least 3.6e.19 weights, the file 1.21e.05"),
        ({"depth": 10**6}, "at least .* arrays, the file 36"),
        ({"num_classes": 10**9}, "at least .* weights"),
        ({"img_resolution": 10**7}, "at least .* weights"),
        ({"mlp_ratio": 1e300}, "at least .* weights"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"T": float("inf")}, "max_time"),
        ({"img_resolution": True}, "img_resolution"),
        ({"num_heads": 5}, "num_heads"),
        ({"patch_size": 0}, "patch_size"),
        ({"img_channels": "4"}, "img_channels"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, change, message):
    arguments, weights = golden(DIT)
    change(arguments, weights) if callable(change) else arguments.update(change)
    path = tmp_path / "model.pkl"
    write_checkpoint(path, arguments, weights)
    with pytest.raises(ValueError, match=f"(?s)Cannot load '{path}'.*{message}"):
        load_official(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_channels": 10**9},
        {"num_blocks": 10**9},
        {"channel_mult": [1, 10**6]},
        {"channel_mult_noise": 10**9},
        {"channel_mult_emb": 10**9},
        {"label_dim": 10**9},
        {"augment_dim": 10**9},
        {"img_channels": 10**9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_unet_larger_than_its_weights_is_not_made(tmp_path, change):
    arguments, weights = golden(UNET)
    write_checkpoint(tmp_path / "model.pkl", arguments | change, weights)
    with pytest.raises(ValueError, match=r"at least .* (weights|arrays), the file"):
        load_official(tmp_path / "model.pkl")


@pytest.mark.parametrize("name", ["noise_schedule", "f_type", "temb_type", "eps"])
def test_what_the_file_does_not_say_must_be_given(tmp_path, name):
    arguments, weights = golden(DIT)
    del arguments[name]
    path = tmp_path / "model.pkl"
    write_checkpoint(path, arguments, weights)
    with pytest.raises(ValueError, match=f"the file does not say '{name}'"):
        load_official(path)


@pytest.mark.parametrize("name", ["zip_bomb", "not_a_pickle", "persistent_id_text"])
def test_other_kinds_of_files_are_said_to_be(tmp_path, name):
    path = tmp_path / "model.pkl"
    path.write_bytes(dict(attacks("marker"))[name])
    with pytest.raises(ValueError, match=f"Cannot load '{path}': it is not a pickle"):
        load_official(path)


def doubling(depth):
    """A value whose text has 2 ** depth parts."""
    value = (0,)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize("name", ["noise_schedule", "img_resolution", "T", "num_heads"])
def test_values_of_unbounded_text_are_not_shown(tmp_path, name):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    write_checkpoint(path, arguments | {name: doubling(40)}, weights)
    result = load_watched(path)
    assert isinstance(result, ValueError) or name == "num_heads"
    write_checkpoint(path, arguments, weights, **{name: doubling(40)})
    load_watched(path)


def test_weights_in_one_storage_are_read_once(tmp_path):
    """A small file cannot become a large one: shared bfloat16 is converted once."""
    from keras_imm.checkpoints import persistent_modules
    from keras_imm.files.pickle_reader import Call, Name

    reads = []
    content = pickle_of_storage()
    storage = Call(Name("torch.storage", "_load_from_bytes"), (content,))
    tensor = Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (3,), (1,)))
    state = {"_parameters": {f"w{i}": tensor for i in range(5)}}
    weights = {}
    module = persistent_modules.Module("Module", state)
    original = persistent_modules.read_storage
    try:
        persistent_modules.read_storage = lambda data: reads.append(1) or original(data)
        persistent_modules._collect(module, "", weights, {}, 0)
    finally:
        persistent_modules.read_storage = original
    assert (len(weights), len(reads)) == (5, 1)
    state["_parameters"] = {f"w{i}": tensor for i in range(1001)}
    with pytest.raises(ValueError, match="more than 1,000 entries"):
        persistent_modules._collect(module, "", {}, {}, 0)
    linear = Name("torch.nn.modules.linear", "Linear")
    children = {f"m{i}": Call(linear, ()) for i in range(3)}
    for child in children.values():
        child.state = {"_parameters": {f"w{i}": tensor for i in range(1000)}}
    state.update(_parameters={}, _modules=children)
    with pytest.raises(ValueError, match="more than 2,000 weights"):
        persistent_modules._collect(module, "", {}, {}, 0)
    children["m1"].state = {"_buffers": {"a": None}}
    children["m2"].state = {"_buffers": children["m1"].state["_buffers"]}
    with pytest.raises(ValueError, match=r"_buffers of 'm2\.' is in two places"):
        persistent_modules._collect(module, "", {}, {}, 0)
    del state["_modules"]
    state["_parameters"] = {"w" * 201: tensor}
    with pytest.raises(ValueError, match="is not a dictionary of names"):
        persistent_modules._collect(module, "", {}, {}, 0)


def pickle_of_storage():
    import io

    import torch

    file = io.BytesIO()
    values = torch.tensor([1.0, 2.0, 3.0]).to(torch.bfloat16)
    torch.save(values.storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_attributes_that_mean_nothing_are_let_be(tmp_path):
    import functools

    import torch

    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    write_checkpoint(
        path,
        arguments,
        weights,
        device=torch.device("cpu"),
        size=torch.Size([2, 3]),
        kinds=(torch.float64, torch.int64, torch.bfloat16),
        partial=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        activation=torch.nn.functional.silu,
    )
    assert load_official(path).num_classes == 10


def test_half_precision_tables(tmp_path):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    write_checkpoint(path, arguments, {n: w.astype("f2") for n, w in weights.items()})
    assert load_official(path).num_classes == 10


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite(tmp_path, dtype, value):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    weights["model.blocks.1.attn.qkv.bias"] = np.full(144, value, dtype)
    write_checkpoint(path, arguments, weights)
    with pytest.raises(ValueError, match=r"attn.qkv.bias' has values that are not fin"):
        load_official(path)


def test_values_that_float32_cannot_hold(tmp_path):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    weights["model.blocks.1.attn.qkv.bias"] = np.full(144, 1e300)
    write_checkpoint(path, arguments, weights)
    with pytest.raises(ValueError, match=r"attn.qkv.bias' has values .* beyond 1e\+37"):
        load_official(path)


def test_a_network_of_more_arrays_than_the_file_is_not_made(tmp_path):
    for source, change in ((DIT, {"depth": 20}), (UNET, {"num_blocks": 9})):
        arguments, weights = golden(source)
        weights["model.more"] = np.zeros(10**7, "f4")  # enough for the count of weights
        path = tmp_path / "model.pkl"
        write_checkpoint(path, arguments | change, weights)
        with pytest.raises(ValueError, match=r"has at least .* arrays, the file \d+"):
            load_official(path)


def test_positional_arguments_are_not_guessed(tmp_path):
    arguments, weights = golden(DIT)
    path = tmp_path / "model.pkl"
    write_checkpoint(path, arguments, weights, _init_args=(8, 4))
    with pytest.raises(ValueError, match="IMMPrecond was made with are not known"):
        load_official(path)


def test_a_path_that_is_not_there_lists_the_names():
    with pytest.raises(ValueError, match=r"'cifar10', 'imagenet256_ts_a2'.*'nothing'"):
        load_official("nothing")


# -- Hostile files

EVENTS = []
WATCHED = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *("pickle.find_class", "os.remove", "os.rename", "os.mkdir", "socket.connect"),
}
watching = False


def hear(event, arguments):
    if not watching:
        return
    # When it first compiles, JAX makes the folder of its cache (conftest.py).
    if event == "os.mkdir" and arguments[0] == os.environ["JAX_COMPILATION_CACHE_DIR"]:
        return
    if event in WATCHED:
        EVENTS.append((event, arguments))
    elif event == "open" and isinstance(arguments[1], str):
        if set(arguments[1]) & set("wxa+") and "jax" not in str(arguments[0]):
            EVENTS.append((event, arguments))
    elif event == "import" and arguments[0].split(".")[0] in ("torch_utils", "timm"):
        EVENTS.append((event, arguments))


sys.addaudithook(hear)


def load_watched(path):
    """The model or the ValueError that a file ends in, and nothing else."""
    global watching
    EVENTS.clear()
    calls = itertools.count()
    watching = True
    sys.setprofile(lambda frame, event, argument: next(calls))
    try:
        result = load_official(path)
    except ValueError as error:
        result = error
    finally:
        sys.setprofile(None)
        watching = False
    assert next(calls) < 20_000_000  # of functions; a whole file takes 6 million
    assert not EVENTS
    return result


def test_the_watch_hears_an_attack(tmp_path):
    import pickle

    global watching
    EVENTS.clear()
    content = dict(attacks(str(tmp_path / "marker")))["system"]
    watching = True
    try:
        pickle.loads(content)
    finally:
        watching = False
    assert "os.system" in [event for event, _ in EVENTS]
    assert (tmp_path / "marker").exists()


@pytest.mark.one_backend("reads files")
@pytest.mark.slow("builds a network for each hostile file")
@pytest.mark.parametrize("name", [name for name, _ in attacks("marker")])
def test_attacks(tmp_path, name):
    path, marker = tmp_path / "model.pkl", tmp_path / "marker"
    path.write_bytes(dict(attacks(str(marker)))[name])
    assert isinstance(load_watched(path), ValueError)
    assert not marker.exists()


@pytest.mark.parametrize("path", TOLERANCES, ids=lambda path: path.stem)
def test_truncated_files(tmp_path, path):
    content = path.read_bytes()
    for part in (0.0, 0.01, 0.3, 0.5, 0.9, 0.999):
        (tmp_path / "model.pkl").write_bytes(content[: int(part * len(content))])
        assert isinstance(load_watched(tmp_path / "model.pkl"), ValueError)


@pytest.mark.one_backend("reads files")
@pytest.mark.parametrize("path", TOLERANCES, ids=lambda path: path.stem)
def test_mutations(tmp_path, path):
    shapes = [tuple(v.shape) for v in load_official(path).weights]
    refused = 0
    for content in mutations(path.read_bytes(), count=25, seed=0):
        (tmp_path / "model.pkl").write_bytes(content)
        result = load_watched(tmp_path / "model.pkl")
        if isinstance(result, ValueError):
            refused += 1
            continue
        assert [tuple(v.shape) for v in result.weights] == shapes
        for v in result.weights:
            assert np.all(np.isfinite(keras.ops.convert_to_numpy(v)))
    assert 5 <= refused < 25


# -- Names


def test_a_published_name_is_fetched_and_knows_its_recipe(monkeypatch):
    asked = []

    def download(repository, filename):
        asked.append((repository, filename))
        return str(DIT)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = load_official("imagenet256_ts_a2")
    assert asked == [("lumaai/imm", "imagenet256_ts_a2.pkl")]
    assert model.second_time == "stride"
    assert (model.weighting.a, model.weighting.b, model.time_mapping.k) == (2, 4, 12)
    assert load_official("imagenet256_ts_a2", second_time="s").second_time == "s"
    # The published note on this file: it is told s, whatever the file says.
    assert load_official("imagenet256_s_a1").second_time == "s"


def test_offline_says_what_to_download(monkeypatch):
    def download(repository, filename):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(OSError, match=r"download https://huggingface.co/lumaai/imm/"):
        load_official("cifar10")


def test_without_the_hub_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match=r"pip install .keras_imm\[hub\]"):
        load_official("cifar10")


# -- Command line


def test_convert(tmp_path, capsys):
    target = tmp_path / "model.keras"
    assert main(["convert", str(DIT), str(target)]) == 0
    assert "121,616 weights" in capsys.readouterr().out
    arrays = dict(np.load(DIT.with_suffix(".npz")))
    images = keras.models.load_model(target).generate(
        labels=arrays["labels"],
        num_steps=2,
        guidance_scale=1.5,
        noise=channels_last(arrays["latents"]) / 0.5,
    )
    expected = channels_last(arrays["pushforward_uniform_2"])
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_convert_shows_progress_and_refuses(tmp_path, capsys):
    assert main(["convert", "nothing", str(tmp_path / "model.keras")]) == 1
    assert "'nothing'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main(["convert", str(DIT), str(tmp_path / "model.h5")])
    assert "must end in .keras" in capsys.readouterr().err


def test_the_file_that_convert_writes_is_what_keras_saves(tmp_path):
    import zipfile

    from keras_imm.checkpoints.keras_file import save

    model = load_official(DIT)
    save(model, tmp_path / "a.keras")
    model.save(tmp_path / "b.keras")
    contents = []
    for name in ("a.keras", "b.keras"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            contents.append((sorted(archive.namelist()), archive.read("config.json")))
    assert contents[0] == contents[1]
    ours, theirs = (
        keras.models.load_model(tmp_path / n) for n in ("a.keras", "b.keras")
    )
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        )
    # Nothing is left beside them, and an older file goes only when the new is whole.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.keras", "b.keras"]
    with pytest.raises(OSError):
        save(model, tmp_path / "missing" / "a.keras")


def test_weights_are_not_views_of_the_file(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(DIT.read_bytes())
    model = load_official(path)
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    for v, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(v), value)
