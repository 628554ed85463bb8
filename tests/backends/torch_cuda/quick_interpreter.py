"""What Triton 3.6's interpreter finds out anew for each launch and tensor, found out once.

For a launch it searches the whole language for what to replace, and for a tensor it spells the name of its shape.
Nothing is computed otherwise.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
from triton import language as tl
from triton.runtime import interpreter

Shape: Any = tl.core.tuple
# As Triton has them.
patch_builtins, numpy_type = interpreter._patch_builtin, interpreter._get_np_dtype
block_type, tensor, equal_shapes = tl.block_type.__init__, tl.tensor.__init__, Shape.__eq__


def quick(patch: pytest.MonkeyPatch) -> None:
    """Put the quick forms in the place of Triton's own, until the patch is undone."""
    patch.setattr(interpreter, "_patch_builtin", _patch_builtins())
    patch.setattr(interpreter, "_get_np_dtype", _numpy_type())
    patch.setattr(tl.block_type, "__init__", _block_type())
    patch.setattr(tl.tensor, "__init__", _tensor())
    patch.setattr(Shape, "__eq__", _equal_shapes)


def _patch_builtins() -> Any:
    """List the functions of a module or class once; what was replaced in this launch already is left."""
    listed: dict[Any, list[tuple[str, Any]]] = {}

    def patch(package: Any, builder: Any, scope: Any) -> None:
        if package not in listed:
            members = inspect.getmembers(package)
            listed[package] = [one for one in members if tl.core.is_builtin(one[1])]
        for name, member in listed[package]:
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, builder, scope)

    return patch


def _numpy_type() -> Any:
    known: dict[str, Any] = {}

    def found(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in known:
            known[name] = numpy_type(kind)
        return known[name]

    return found


def _block_type() -> Any:
    """The shape and the number of elements hang on the sides, the name on those and the name of the elements."""
    sizes: dict[tuple[int, ...], tuple[Any, int]] = {}
    names: dict[tuple[tuple[int, ...], str], str] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sides = tuple(side.value if isinstance(side, tl.constexpr) else side for side in shape)
        name = names.get((sides, element_ty.name))
        if name is None or isinstance(shape, tuple):  # such a one is refused
            block_type(self, element_ty, shape)
            sizes.setdefault(sides, (self.shape, self.numel))
            names[sides, element_ty.name] = self.name
        else:
            self.element_ty, self.name = element_ty, name
            self.shape, self.numel = sizes[sides]

    return init


def _tensor() -> Any:
    """Tensors of the same sides have the same shape, which nothing changes."""
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        sides = tuple(type.shape) if type.is_block() else ()
        if sides not in shapes:
            shapes[sides] = Shape([tl.constexpr(side) for side in sides]), tl.constexpr(math.prod(sides))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[sides]

    return init


def _equal_shapes(self: Any, other: Any) -> Any:
    return tl.constexpr(True) if other is self else equal_shapes(self, other)
