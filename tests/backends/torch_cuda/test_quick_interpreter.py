"""The interpreter of the kernels' tests finds the same types, shapes and functions as Triton's own."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

if not version("triton").startswith("3.6."):
    pytest.skip("another release of Triton is left as it is", allow_module_level=True)

from triton import language as tl
from triton.runtime import interpreter

from backends.torch_cuda import quick_interpreter as own

SCALARS = [
    *(tl.int1, tl.int8, tl.uint8, tl.int16, tl.uint16, tl.int32, tl.uint32, tl.int64, tl.uint64),
    *(tl.float16, tl.bfloat16, tl.float32, tl.float64, tl.float8e5, tl.float8e4nv),
]
SIDES = [(1,), (64,), (16, 32), (32, 16), (2, 4, 8)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing remembered; each test asks for the same again."""
    own.quick(monkeypatch)


def triton_block(element: Any, sides: tuple[int, ...]) -> Any:
    made = object.__new__(tl.block_type)
    own.block_type(made, element, list(sides))
    return made


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("element", [*SCALARS, tl.pointer_type(tl.float16)], ids=str)
def test_a_block_has_its_own_type(element: Any, sides: tuple[int, ...]) -> None:
    wanted = triton_block(element, sides)
    for given in (list(sides), [tl.constexpr(side) for side in sides], wanted.shape):
        found = tl.block_type(element, given)
        assert (found.name, found.numel, found.element_ty) == (wanted.name, wanted.numel, element)
        assert list(found.shape) == list(sides)
        assert found == wanted and wanted == found
        assert found.shape.type == wanted.shape.type
    assert tl.block_type(element, list(sides)) != tl.block_type(element, [*sides, 2])
    assert tl.block_type(element, list(sides)) != tl.block_type(tl.pointer_type(tl.int8), list(sides))


def test_a_side_that_triton_refuses_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="power of 2"):
            tl.block_type(tl.int32, [3])
        with pytest.raises(TypeError, match="0d block_type"):
            tl.block_type(tl.int32, [])
        assert tl.block_type(tl.int32, [4]).numel == 4
        with pytest.raises(AssertionError):
            tl.block_type(tl.int32, (4,))


@pytest.mark.parametrize(
    "kind", [*SCALARS, *(tl.block_type(tl.int8, list(sides)) for sides in SIDES)], ids=str
)
def test_a_tensor_knows_its_shape_and_type(kind: Any) -> None:
    wanted = object.__new__(tl.tensor)
    own.tensor(wanted, "handle", kind)
    for _ in range(2):
        found = tl.tensor("handle", kind)
        assert vars(found).keys() == vars(wanted).keys()
        assert (found.handle, found.type, found.dtype) == ("handle", kind, wanted.dtype)
        assert [side.value for side in found.shape] == [side.value for side in wanted.shape]
        assert found.shape.type == wanted.shape.type
        assert found.numel.value == wanted.numel.value


@pytest.mark.parametrize("scalar", SCALARS, ids=str)
def test_every_type_has_its_type_in_numpy(scalar: Any) -> None:
    pointer = tl.pointer_type(scalar)
    for kind in (scalar, tl.block_type(scalar, [4]), pointer, tl.block_type(pointer, [4])) * 2:
        assert interpreter._get_np_dtype(kind) == own.numpy_type(kind)
    assert interpreter._get_np_dtype(pointer) == np.uint64


@pytest.mark.parametrize("package", [tl, tl.core, tl.math, tl.tensor], ids=lambda one: one.__name__)
def test_a_launch_replaces_what_triton_replaces_and_puts_it_back(package: Any) -> None:
    before = inspect.getmembers(package)
    assert replaced(own.patch_builtins, package)
    for _ in range(2):
        assert replaced(interpreter._patch_builtin, package) == replaced(own.patch_builtins, package)
        assert inspect.getmembers(package) == before


def replaced(patch: Any, package: Any) -> list[tuple[str, Any]]:
    """What one launch replaces; Triton names a module twice that is known by two names."""
    scope = interpreter._LangPatchScope()
    try:
        for _ in range(2):
            patch(package, interpreter.interpreter_builder, scope)
        return [(name, member) for _, name, member in scope._changes]
    finally:
        scope.restore()


def test_shapes_are_compared_by_their_sides() -> None:
    shape, same, other = (tl.core.tuple(sides) for sides in ([2, 4], [2, 4], [4, 2]))
    assert shape == shape and shape == same
    assert shape != other
