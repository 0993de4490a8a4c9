"""What lies beside a SavedModel."""

import builtins

import pytest

from keras_imm.serving import server_files


def test_the_configuration_names_the_folder_and_is_written_once(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    server_files.write_configuration(folder)
    config = folder / "models.config"
    assert 'name: "digits"' in config.read_text()
    batching = (folder / "batching_parameters.txt").read_text()
    assert "max_batch_size { value: 64 }" in batching
    config.write_text("by hand")
    server_files.write_configuration(folder)
    assert config.read_text() == "by hand"


@pytest.fixture
def without_tensorflow_serving(monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("tensorflow_serving"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_requests_to_warm_up_with_take_a_package(without_tensorflow_serving, tmp_path):
    with pytest.raises(ImportError, match="tensorflow-serving-api"):
        server_files.write_warmup(tmp_path, {}, True)
    server_files.write_warmup(tmp_path, {}, False)
    with pytest.warns(UserWarning, match="tensorflow-serving-api"):
        server_files.write_warmup(tmp_path, {}, None)
    assert list(tmp_path.iterdir()) == []
