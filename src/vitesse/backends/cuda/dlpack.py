"""DLPack's capsules, by ctypes: how arrays of two libraries share memory in one process.

Layout and rules: https://dmlc.github.io/dlpack (DLManagedTensor, the form that every consumer takes). A capsule
named "dltensor" owns its tensor until a consumer renames it to "used_dltensor"; whoever owns it calls its deleter once.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

CUDA = 2
DEVICE_KINDS = {
    1: "host memory",
    CUDA: "a CUDA device",
    3: "page-locked host memory",
    10: "a ROCm device",
    13: "managed memory",
}
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2

_FRESH, _USED = b"dltensor", b"used_dltensor"
_KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_WITHOUT_NUMPY = {4: "bfloat16"}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_ManagedTensor._fields_ = (
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
)

# Functions of CPython's own interface; these keep the GIL.
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)
# By address, for a capsule that is being destroyed: a reference to it would bring it back to life.
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# What consumers hold, by the address of the managed tensor: it, its shape, and who owns the memory.
_exported: dict[int, tuple[_ManagedTensor, Any, object]] = {}


def _delete(managed: Any) -> None:
    """Let go of an exported tensor; consumers call it from any thread."""
    _exported.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule: int) -> None:
    """Let go of the tensor of a capsule that nobody consumed."""
    if _dying_is_valid(capsule, _FRESH):
        _exported.pop(_dying_pointer(capsule, _FRESH), None)


_deleter, _destructor = _Deleter(_delete), _Destructor(_destroy)


@dataclass(frozen=True)
class Imported:
    """The tensor of somebody's capsule. `strides` count elements, None for C-contiguous; `owner` keeps the memory."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[np.generic]
    device_kind: int
    device: int
    owner: object


class _Owner:
    """Calls the deleter of a consumed capsule once nothing refers to it any more."""

    def __init__(self, address: int) -> None:
        deleter = _ManagedTensor.from_address(address).deleter
        if deleter:
            # At the end of the process the memory goes anyway, and its library may be gone before.
            pointer = ctypes.cast(address, ctypes.POINTER(_ManagedTensor))
            weakref.finalize(self, deleter, pointer).atexit = False


def export_capsule(
    address: int, shape: tuple[int, ...], dtype: np.dtype[np.generic], device: int, owner: object
) -> object:
    """Return a capsule of C-contiguous device memory that keeps `owner` until its consumer is done with it."""
    if dtype.kind not in _KINDS:
        raise BufferError(f"DLPack has no type for {dtype}")
    dims = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    kind = _DataType(_KINDS[dtype.kind], dtype.itemsize * 8, 1)
    tensor = _Tensor(address, _Device(CUDA, device), len(shape), kind, dims, None, 0)
    managed = _ManagedTensor(tensor, None, _deleter)
    key = ctypes.addressof(managed)
    _exported[key] = (managed, dims, owner)
    return _new(key, _FRESH, _destructor)


def import_capsule(capsule: object) -> Imported:
    """Take over the tensor of a capsule.

    Raises:
        BufferError: it is no capsule of DLPack's first form, it was used, or its type has no numpy dtype.
    """
    if not _is_valid(capsule, _FRESH):
        raise BufferError("this is no fresh DLPack capsule: it was used before, or is something else")
    address = _pointer(capsule, _FRESH)
    tensor = _ManagedTensor.from_address(address).tensor
    dtype = _numpy_dtype(tensor.dtype)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    data = (tensor.data or 0) + tensor.byte_offset
    found = Imported(data, shape, strides, dtype, tensor.device.kind, tensor.device.number, _Owner(address))
    _rename(capsule, _USED)
    return found


def _numpy_dtype(found: _DataType) -> np.dtype[np.generic]:
    letter = next((letter for letter, code in _KINDS.items() if code == found.code), None)
    if letter is None or found.lanes != 1 or found.bits % 8:
        name = _WITHOUT_NUMPY.get(found.code, f"DLPack's type {found.code}")
        raise BufferError(f"{name} of {found.bits} bits and {found.lanes} lanes has no numpy dtype")
    return np.dtype(f"{letter}{found.bits // 8}")
