"""What a module can do is found in the module: recorded surfaces of four versions, the stub of 10.13, the real RTX."""

from __future__ import annotations

import ast
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensorrt_stubs import stubs_installed
from tensorrt_surfaces import surface
from vitesse.backends.tensorrt.api import load_api
from vitesse.backends.tensorrt.features import features_of


def test_before_8_4_memory_is_an_attribute_and_an_engine_is_built() -> None:
    found = features_of(surface("8.2"))
    assert (found.memory_pools, found.build_serialized_network) == (False, False)
    assert (found.explicit_batch, found.strong_typing) == (True, "absent")
    assert (found.timing_cache, found.progress_monitor, found.version_compatible) == (False, False, False)
    assert found.hardware_compatibility == ()


def test_8_6_is_weakly_typed_and_binds_layers() -> None:
    found = features_of(surface("8.6"))
    assert (found.explicit_batch, found.strong_typing) == (True, "absent")
    assert found.precision_flags == ("FP16", "INT8")
    assert found.precision_constraints[0] == "OBEY_PRECISION_CONSTRAINTS"
    assert (found.memory_pools, found.build_serialized_network, found.timing_cache) == (True, True, True)
    assert (found.progress_monitor, found.runtime_config) == (False, False)


def test_10_has_both_ways_of_typing() -> None:
    found = features_of(surface("10.13"))
    assert (found.explicit_batch, found.strong_typing) == (True, "flag")
    assert found.precision_flags == ("FP16", "INT8", "BF16", "FP8")
    assert found.progress_monitor and found.runtime_config
    assert found.hardware_compatibility == ("AMPERE_PLUS",)


def test_11_has_no_precision_flag_and_no_explicit_batch() -> None:
    found = features_of(surface("11.4"))
    assert (found.explicit_batch, found.strong_typing) == (False, "always")
    assert (found.precision_flags, found.precision_constraints) == ((), ())


def test_no_enterprise_version_builds_for_gpus_elsewhere_or_tells_validity() -> None:
    for version in ("8.2", "8.6", "10.13", "11.4"):
        found = features_of(surface(version))
        assert found.compute_capabilities == ()
        assert not found.engine_validity and not found.runtime_cache
        assert found.cuda_graph_strategies == found.kernel_specializations == ()


def test_the_real_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    found = features_of(load_api("tensorrt_rtx"))
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(found.compute_capabilities)
    assert not {"none", "current", "sm90"} & set(found.compute_capabilities)
    assert (found.strong_typing, found.explicit_batch) == ("always", False)
    assert found.memory_pools and found.build_serialized_network and found.progress_monitor
    assert found.runtime_cache and found.engine_validity
    assert "WHOLE_GRAPH_CAPTURE" in found.cuda_graph_strategies
    assert "EAGER" in found.kernel_specializations


@pytest.mark.skipif(not stubs_installed(), reason="tensorrt-stubs 10 is not installed")
def test_the_recorded_10_has_what_the_published_stub_has() -> None:
    found, recorded = features_of(_stub_module()), features_of(surface("10.13"))
    assert set(found.precision_flags) == set(recorded.precision_flags)
    for name in ("strong_typing", "explicit_batch", "precision_constraints", "memory_pools", "timing_cache"):
        assert getattr(found, name) == getattr(recorded, name), name
    for name in ("build_serialized_network", "progress_monitor", "version_compatible", "runtime_config"):
        assert getattr(found, name) == getattr(recorded, name), name
    for name in ("compute_capabilities", "runtime_cache", "engine_validity", "cuda_graph_strategies"):
        assert getattr(found, name) == getattr(recorded, name), name


def _stub_module() -> Any:
    """The classes of the stub as classes without content but their names."""
    folder = Path(str(distribution("tensorrt-stubs").locate_file("tensorrt_bindings")))
    lines = (folder / "tensorrt.pyi").read_text().splitlines()
    while True:  # five signatures of it cannot be parsed
        try:
            tree = ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            assert error.lineno is not None
            indent = len(lines[error.lineno - 1]) - len(lines[error.lineno - 1].lstrip())
            lines[error.lineno - 1] = f"{' ' * indent}def unreadable(self):"
    return SimpleNamespace(
        **{node.name: _class(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    )


def _class(node: ast.ClassDef) -> type:
    names: dict[str, Any] = {}
    for entry in node.body:
        if isinstance(entry, ast.FunctionDef) and not entry.name.startswith("__"):
            names[entry.name] = entry.name
        elif isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            names[entry.target.id] = entry.target.id
    names["__members__"] = {name: name for name in names if name.isupper()}
    return type(node.name, (), names)
