"""`flax:PACKAGE.MODULE:FACTORY`: the user's own function, found, called and checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("jax2onnx", reason="needs the extra jax")
from vitesse.errors import ModelError, UsageError
from vitesse.sources.jax.function import JaxSource, open_flax
from vitesse.sources.source import ExportOptions, Given
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "scores"}, Preprocessing((8, 8)))
MODELS = """
import numpy as np
from flax import linen
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

WEIGHT = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)

def plain():
    return (lambda params, images: images.mean((1, 2)) @ params), WEIGHT, ("B", 8, 8, 3)

class Head(linen.Module):
    @linen.compact
    def __call__(self, images):
        return linen.Dense(4)(images.mean((1, 2)))

def module():
    return Head(), {"Dense_0": {"kernel": WEIGHT, "bias": WEIGHT[0]}}, ("B", 8, 8, 3)

def with_spec():
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "own", {"logits": "own_logits"}, Preprocessing((8, 8)))
    return (*plain(), spec)

def half():
    return plain()[:2]

def no_tuple():
    return plain()[0]

def wrong_spec():
    return (*plain(), {"task": "classification"})

def fails():
    raise RuntimeError("no weights at weights.msgpack")

def wants_more(path):
    return plain()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with the user's package, which Python does not find by itself."""
    package = tmp_path / "own_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "vit.py").write_text(MODELS)
    (package / "needy.py").write_text("import a_package_nobody_has\n")
    (package / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_models"]:
        del sys.modules[name]


def opened(text: str, given: Given | None = None) -> JaxSource:
    source = open_flax(text, given or Given())
    assert isinstance(source, JaxSource)
    return source


@pytest.mark.parametrize(("factory", "name"), [("plain", "<lambda>"), ("module", "Head")])
def test_functions_and_modules_are_found_in_the_current_folder(folder: Path, factory: str, name: str) -> None:
    path = list(sys.path)
    source = opened(f"own_models.vit:{factory}")
    assert source.title == f"{name} (flax:own_models.vit:{factory})"
    assert source.export(ExportOptions()).spec.preprocessing.size == (8, 8)
    assert sys.path == path


def test_the_fourth_value_is_the_spec_unless_the_user_gives_one(folder: Path) -> None:
    assert opened("own_models.vit:with_spec").spec.outputs == {"logits": "own_logits"}
    assert opened("own_models.vit:with_spec", Given(SPEC)).spec == SPEC


def test_a_setting_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="--set heads=8: flax:own_models"):
        opened("own_models.vit:plain", Given(settings={"heads": "8"}))


@pytest.mark.parametrize(
    "text", ["own_models/vit.py:plain", "own_models.vit", "own_models.vit:plain()", ":plain"]
)
def test_another_form_of_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="flax:PACKAGE"):
        opened(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no_models.vit:plain", "there is no module 'no_models'"),
        ("own_models.tiv:plain", "there is no module 'own_models.tiv'"),
        ("own_models.needy:plain", "needs the package 'a_package_nobody_has'"),
        ("own_models.broken:plain", "importing it failed: ZeroDivisionError"),
        ("own_models.vit:plane", "perhaps flax:own_models.vit:plain"),
        ("own_models.vit:WEIGHT", "has no function 'WEIGHT'"),
        ("own_models.vit:half", "returned a tuple of 2"),
        ("own_models.vit:no_tuple", "returned a function"),
        ("own_models.vit:wrong_spec", "returned a dict as its fourth value"),
        ("own_models.vit:fails", r"fails\(\) raised RuntimeError: no weights at weights.msgpack"),
        ("own_models.vit:wants_more", "a function without arguments"),
    ],
)
def test_what_is_wrong_with_the_users_code_is_said(folder: Path, text: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        opened(text)
