"""A JAX function of images and its parameters: called, traced, and told apart from others by its content."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from vitesse.errors import ModelError, UsageError

# How modules are told that nobody trains them, where their __call__ asks.
_AT_INFERENCE = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


@dataclass(frozen=True, eq=False)
class JaxModel:
    """`function(params, images)`: images float32 (batch, H, W, 3) → arrays in any tree; params are float32."""

    name: str
    function: Callable[[Any, Any], Any]
    params: Any

    def shapes(self, batch: int, size: tuple[int, int]) -> Any:
        """Shapes and dtypes of what it returns, nothing computed.

        Raises:
            ModelError: the function fails on such images; the message is its own.
        """
        images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
        try:
            return jax.eval_shape(self.function, self.params, images)
        except Exception as error:  # the user's code may raise anything
            raise ModelError(
                f"{self.name} fails on images float32[{batch},{size[0]},{size[1]},3]: {first_line(error)}",
                expected="a function of (params, images) that JAX can trace",
                cause="the parameters are of another model, or made for another image size",
            ) from error

    def traced(self, batch: int, size: tuple[int, int]) -> ClosedJaxpr:
        """What JAX computes, as its intermediate language has it."""
        images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
        return jax.make_jaxpr(self.function)(self.params, images)


def model_of(fn: Any, params: Any) -> JaxModel:
    """Make one function of a plain function, a Linen module or an NNX module, as it is at inference.

    Args:
        fn: `fn(params, images)`; or a Linen module, with its variables or the collection `params` alone; or an NNX
            module, with its state or None. Arguments of `__call__` such as `train` and `deterministic` are set.

    Raises:
        UsageError: `fn` is none of these, or `params` holds something that is no array.
    """
    name = getattr(fn, "__name__", None) or type(fn).__name__
    if isinstance(fn, linen.Module):
        return JaxModel(name, _linen_function(fn), _float32(_collections(params), name))
    if isinstance(fn, nnx.Module):
        graph, state = nnx.split(fn if params is None else nnx.merge(nnx.graphdef(fn), params))
        copy = nnx.merge(graph, state)  # eval() changes the module it is called on
        copy.eval()
        return JaxModel(name, *_nnx_function(copy, name))
    if not callable(fn):
        raise UsageError(
            f"from_jax got {type(fn).__name__} as the model",
            expected="a function of (params, images), or a flax module",
        )
    return JaxModel(name, fn, _float32(params, name))


def fingerprint(model: JaxModel, size: tuple[int, int]) -> str:
    """Return a hash of the parameters and of what is computed with them: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    flat, _ = jax.tree_util.tree_flatten_with_path(model.params)
    for path, leaf in flat:
        digest.update(jax.tree_util.keystr(path).encode())
        _add_array(digest, leaf)
    traced = model.traced(2, size)
    # Functions are printed with the address at which they happen to lie.
    digest.update(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    for constant in _constants(traced):
        _add_array(digest, constant)
    return digest.hexdigest()


def primitives(traced: ClosedJaxpr) -> frozenset[str]:
    """Return the names of all JAX primitives in it."""
    return frozenset(equation.primitive.name for equation in _equations(traced.jaxpr))


def narrow_floats(traced: ClosedJaxpr) -> Mapping[str, str]:
    """Return the floating-point types other than float32 that occur, each with a primitive that makes it."""
    found: dict[str, str] = {}
    for equation in _equations(traced.jaxpr):
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", np.dtype(bool))
            if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float32:
                found.setdefault(str(dtype), equation.primitive.name)
    return found


def first_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _linen_function(module: linen.Module) -> Callable[[Any, Any], Any]:
    asked = inspect.signature(type(module).__call__).parameters
    flags = {name: value for name, value in _AT_INFERENCE.items() if name in asked}
    return lambda variables, images: module.apply(variables, images, **flags)


def _collections(params: Any) -> Any:
    return params if isinstance(params, Mapping) and "params" in params else {"params": params}


def _nnx_function(module: nnx.Module, name: str) -> tuple[Callable[[Any, Any], Any], Any]:
    graph, state = nnx.split(module)
    return lambda held, images: nnx.merge(graph, held)(images), _float32(state, name)


def _float32(params: Any, name: str) -> Any:
    """Floating-point leaves as float32, the precision a graph is exported in; others as they are."""

    def one(path: Any, leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and not isinstance(leaf, bool | int | float):
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UsageError(
                f"the parameter `{where}` of {name} is a {type(leaf).__name__}",
                expected="arrays and numbers only",
                fix="keep what is no array in the function, with functools.partial",
            )
        floats = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float32) if floats or isinstance(leaf, float) else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _add_array(digest: Any, leaf: Any) -> None:
    if jnp.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(equation):
            yield from _equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _constants(traced: ClosedJaxpr) -> Iterator[Any]:
    yield from traced.consts
    for equation in _equations(traced.jaxpr):
        yield from (operand.val for operand in equation.invars if isinstance(operand, Literal))
        for inner in _inner(equation):
            if isinstance(inner, ClosedJaxpr):
                yield from inner.consts


def _inner(equation: JaxprEqn) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Functions inside an equation: of jit, cond, scan, custom derivatives."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item
