"""A TensorRT module is found by name, and one that is not whole is refused with the line to install it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from vitesse.backends.tensorrt.api import load_api, title_of
from vitesse.backends.tensorrt.features import features_of
from vitesse.errors import MissingExtra, UsageError


def test_an_unknown_module_is_refused_with_the_two_names() -> None:
    with pytest.raises(UsageError, match="one of: tensorrt, tensorrt_rtx"):
        load_api("os")


def test_type_stubs_without_the_library_are_told_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("class Builder: ...")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingExtra, match="only the type stubs of tensorrt are installed") as caught:
        load_api("tensorrt")
    assert caught.value.fix == "pip install 'vitesse[gpu]' tensorrt"
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


def test_an_absent_module_names_the_line_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with pytest.raises(MissingExtra, match="tensorrt_rtx is not installed") as caught:
        load_api("tensorrt_rtx")
    assert caught.value.fix == "pip install 'vitesse[tensorrt-rtx]'"


def test_a_module_whose_library_does_not_open_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingExtra, match=r"does not load: libnvinfer\.so\.10") as caught:
        load_api("tensorrt")
    assert caught.value.fix == "pip install --force-reinstall 'vitesse[gpu]' tensorrt"


def test_two_modules_work_in_one_process_whichever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    source = "from tensorrt_surfaces import surface\nglobals().update(vars(surface('8.6')))"
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    for order in (("tensorrt", "tensorrt_rtx"), ("tensorrt_rtx", "tensorrt")):
        found = {name: load_api(name) for name in order}
        assert isinstance(found["tensorrt"], ModuleType)
        assert title_of(found["tensorrt"]) == "tensorrt 8.6"
        assert title_of(found["tensorrt_rtx"]).startswith("tensorrt_rtx 1.")
        assert features_of(found["tensorrt"]).strong_typing == "absent"
        assert features_of(found["tensorrt_rtx"]).strong_typing == "always"
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
