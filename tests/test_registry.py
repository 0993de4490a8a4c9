"""Names of objects: those that arguments take, and those that files hold."""

import ast
import importlib
import pathlib
import sys

import keras
import pytest

from keras_imm import registry

PACKAGE = pathlib.Path(registry.__file__).parent

# Files saved by earlier versions hold these: they must go on naming the same classes.
SAVED = {
    *("Cosine", "FlowMatching"),
    *("EulerFM", "Identity", "SimpleEDM"),
    *("EtaDecrement", "InverseEtaIncrement", "LogSNRDecrement", "TimeDecrement"),
    *("ELBO", "Uniform"),
    *("Energy", "Laplace", "PseudoHuber", "RBF"),
    *("DiT", "EDMAugmentation", "IMM", "InceptionV3", "RAdam", "UNet"),
    *("DiTBlock", "FinalLayer", "PatchEmbedding", "UNetBlock"),
    *("FourierEmbedding", "PositionalEmbedding", "TimestepEmbedding"),
    *("SelfAttention", "SinCosPositionEmbedding"),
}


# -- lookup


class Shape:
    pass


class Square(Shape):
    pass


class Circle(Shape):
    pass


KNOWN = {"square": Square, "circle": Circle}


def test_a_name_stands_for_a_default_object():
    assert type(registry.lookup("shape", "circle", KNOWN, Shape)) is Circle


def test_an_object_stands_for_itself():
    square = Square()
    assert registry.lookup("shape", square, KNOWN, Shape) is square


@pytest.mark.parametrize("identifier", ["triangle", "", None, 3, Square, ["square"]])
def test_anything_else_is_an_error_that_lists_the_names(identifier):
    with pytest.raises(ValueError, match="`shape` must be one of") as error:
        registry.lookup("shape", identifier, KNOWN, Shape)
    message = str(error.value)
    assert "'square', 'circle' or an instance of" in message
    assert f"{Shape.__module__}.Shape" in message
    assert f"shape={identifier!r}" in message


def test_list_names():
    assert registry.list_names(KNOWN) == "'square', 'circle'"


# -- Names registered for saving


def registrations(source: str) -> list[tuple[str, str]]:
    """(registered name, class) of every class that a source file registers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            called = isinstance(decorator, ast.Call)
            function = ast.unparse(decorator.func if called else decorator)
            if not function.endswith("register_keras_serializable"):
                continue
            # Constants, so that the names can be read here and by people.
            given = [ast.literal_eval(a) for a in decorator.args] if called else []
            given = dict(zip(("package", "name"), given, strict=False))
            for keyword in decorator.keywords if called else []:
                given[keyword.arg] = ast.literal_eval(keyword.value)
            package, name = given.get("package", "Custom"), given.get("name")
            found.append((f"{package}>{name or node.name}", node.name))
    return found


def registered_in_sources() -> list[tuple[str, str, str]]:
    """(registered name, module, class) of every registered class of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        found += [
            (name, module, kind) for name, kind in registrations(path.read_text())
        ]
    return found


def repeated(names) -> set[str]:
    names = list(names)
    return {name for name in names if names.count(name) > 1}


def test_reading_registrations():
    source = """
@keras.saving.register_keras_serializable(package="keras_imm")
class A: ...
@register_keras_serializable("keras_imm.objectives", name="B")
class Other: ...
@keras.saving.register_keras_serializable()
class C: ...
@dataclass
class D: ...
@keras.saving.register_keras_serializable("keras_imm", "A")
class E: ...
"""
    found = registrations(source)
    assert found == [
        ("keras_imm>A", "A"),
        ("keras_imm.objectives>B", "Other"),
        ("Custom>C", "C"),
        ("keras_imm>A", "E"),
    ]
    assert repeated(name for name, _ in found) == {"keras_imm>A"}


def test_no_two_classes_share_a_name():
    """A second class of a taken name silently takes the first one's place."""
    names = [name for name, _, _ in registered_in_sources()]
    assert len(names) >= len(SAVED)
    assert repeated(names) == set()


def test_names_are_under_the_package():
    for name, module, _ in registered_in_sources():
        package = name.split(">")[0]
        assert package == "keras_imm" or package.startswith("keras_imm."), module


@pytest.mark.parametrize(
    ("name", "module", "kind"), registered_in_sources(), ids=lambda value: value
)
def test_a_name_stands_for_its_class(name, module, kind):
    kind = getattr(importlib.import_module(module), kind)
    assert keras.saving.get_registered_name(kind) == name
    assert keras.saving.get_registered_object(name) is kind


def test_every_class_stands_under_one_name():
    """Also classes that are registered otherwise than by a decorator."""
    registered = {
        name: kind
        for name, kind in keras.saving.get_custom_objects().items()
        if name.startswith("keras_imm")
    }
    assert len(set(registered.values())) == len(registered)
    for module in [m for n, m in sys.modules.items() if n.startswith("keras_imm.")]:
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__module__ != module.__name__:
                continue
            name = keras.saving.get_registered_name(kind)
            if ">" in name:
                assert registered[name] is kind, f"{name} is {registered[name]}"


def test_names_in_saved_files_stay():
    registered = keras.saving.get_custom_objects()
    missing = {name for name in SAVED if f"keras_imm>{name}" not in registered}
    assert missing == set()
