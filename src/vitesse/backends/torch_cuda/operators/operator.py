"""How a node's inputs and attributes reach the torch function that computes it, and how refusals are worded.

The signature of the function is the contract: positional parameters are the operator's inputs (`None` where an optional
one is missing), keyword parameters its attributes with the defaults of the standard. An attribute that the function
does not name is refused. Two keywords are filled in by the adapter and are no attributes: `opset`, and `outputs`, the
number of outputs that the node lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.operators.constants import to_torch
from vitesse.errors import ModelError

Made = Tensor | tuple[Tensor | None, ...]
Bound = Callable[[Sequence[Tensor | None]], tuple[Tensor | None, ...]]
_STANDARD = frozenset({"", "ai.onnx"})
_FILLED_IN = frozenset({"opset", "outputs"})
# Opset 7 brought broadcasting as it is today.
_OLDEST = 7


class Unsupported(Exception):
    """A form of an operator that its torch function does not have."""

    def __init__(self, what: str, supported: str) -> None:
        self.what, self.supported = what, supported
        super().__init__(what)


@dataclass(frozen=True)
class Operator:
    """One operator in plain torch, on meta, CPU and CUDA tensors.

    domain, name: as in the graph; the standard domain is "".
    compute: the function; see the module's text.
    host: positions of inputs whose values decide shapes or numbers of the call: they must be CPU tensors, so that a GPU
        is never waited for.
    by_shape: the result needs only the shape of input 0; it is computed on the CPU, whatever that input's device.
    by_value: the shape of the result depends on the values of input 0, so that it exists for constants only.
    since: the first opset whose form of the operator is implemented.
    """

    domain: str
    name: str
    compute: Callable[..., Made]
    host: frozenset[int] = frozenset()
    by_shape: bool = False
    by_value: bool = False
    since: int = _OLDEST

    def __call__(self, node: ir.Node, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Compute the node's outputs, as many as it lists; arguments and errors as in `bound`."""
        return self.bound(node)(tensors)

    def bound(self, node: ir.Node) -> Bound:
        """Read the node's attributes once and return what computes its outputs, as many as it lists.

        The function takes the node's inputs in order, None where one is missing; those of `host` on the CPU.

        Raises:
            ModelError: a form, an attribute or an output that is not supported; the function raises it, too, for inputs
                that do not fit together.
        """
        try:
            keywords = self._keywords(node)
        except Unsupported as error:
            raise self._refusal(node, error.what, error.supported) from error
        wanted = [bool(value.name) for value in node.outputs]

        def compute(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
            try:
                made = self.compute(*tensors, **keywords)
            except Unsupported as error:
                raise self._refusal(node, error.what, error.supported) from error
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise _does_not_fit(node, tensors, error) from error
            results = made if isinstance(made, tuple) else (made,)
            if any(wanted[len(results) :]):
                raise self._refusal(node, f"output {len(results) + 1}", f"{len(results)} output(s)")
            return results[: len(wanted)]

        return compute

    @cached_property
    def _attributes(self) -> Mapping[str, bool]:
        """Keyword parameters of the function → whether they must be given."""
        parameters = inspect.signature(self.compute).parameters.values()
        keywords = (one for one in parameters if one.kind is one.KEYWORD_ONLY)
        return {one.name: one.default is one.empty for one in keywords}

    def _keywords(self, node: ir.Node) -> dict[str, Any]:
        opset = opset_of(node)
        if self.domain == "" and opset < self.since:
            raise Unsupported(f"opset {opset}", f"opset {self.since} and newer")
        given = {name: _value(attribute) for name, attribute in node.attributes.items()}
        known = self._attributes.keys() - _FILLED_IN
        for name in sorted(given.keys() - known):
            raise Unsupported(
                f"attribute {name}={given[name]!r}", f"attributes {', '.join(sorted(known)) or 'none'}"
            )
        if "opset" in self._attributes:
            given["opset"] = opset
        if "outputs" in self._attributes:
            given["outputs"] = len(node.outputs)
        for name in (name for name, needed in self._attributes.items() if needed and name not in given):
            raise Unsupported(f"no attribute {name}", f"a node with attribute {name}")
        return given

    def _refusal(self, node: ir.Node, what: str, supported: str) -> ModelError:
        return ModelError(
            f"{described(node)}: {what} is not supported",
            expected=supported,
            cause="the torch-cuda engine computes the forms that fused DETR and ViT graphs have",
            fix="build for another target, such as cuda or tensorrt, or export the model without it",
        )


REGISTRY: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str,
    host: Collection[int] = (),
    by_shape: bool = False,
    by_value: bool = False,
    since: int = _OLDEST,
) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Enter a function into the table under the standard operators `names`; the rest as in Operator."""

    def enter(compute: Callable[..., Made]) -> Callable[..., Made]:
        for name in names:
            REGISTRY["", name] = Operator("", name, compute, frozenset(host), by_shape, by_value, since)
        return compute

    return enter


def domain_of(node: ir.Node) -> str:
    """Return the node's domain, "" for the standard one however it is written."""
    return "" if node.domain in _STANDARD else node.domain


def opset_of(node: ir.Node) -> int:
    """Return the opset version of the node's domain, 0 where the model does not say."""
    imports = {} if node.graph is None else node.graph.opset_imports
    domains = _STANDARD if node.domain in _STANDARD else {node.domain}
    return node.version or next((imports[domain] for domain in domains if domain in imports), 0)


def described(node: ir.Node) -> str:
    """Name a node for messages: its name, operator and opset."""
    name = node.name or next((value.name for value in node.outputs if value.name), "without a name")
    return (
        f"node {name!r} ({':'.join(filter(None, (domain_of(node), node.op_type)))}, opset {opset_of(node)})"
    )


def _does_not_fit(node: ir.Node, tensors: Sequence[Tensor | None], error: Exception) -> ModelError:
    given = ", ".join("none" if one is None else f"{tuple(one.shape)} {one.dtype}" for one in tensors)
    return ModelError(
        f"{described(node)} cannot be computed on {given}",
        expected="inputs whose shapes and types fit the operator",
        cause=" ".join(str(error).split())[:300],
        fix="check the model with onnx.checker.check_model(model, full_check=True)",
    )


def _value(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return to_torch(attribute.as_tensor())
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
        return tuple(attribute.value)
    return attribute.value
