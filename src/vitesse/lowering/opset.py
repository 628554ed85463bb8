"""A model in another version of the ONNX operator set, older or newer, computing the same.

Runtimes dislike the newest operators one by one: ONNX Runtime's CUDA provider has no MaxPool of opset 22 and sends it
to the CPU, which forbids CUDA graphs; TensorRT reads the mode names of GridSample from opset 20 on wrongly. Most new
versions of an operator only take more types, so that a graph that does not use them may be called an older one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from vitesse.errors import ModelError, UsageError
from vitesse.fusion import finished
from vitesse.fusion.contract import load, signature_of
from vitesse.fusion.opset import opset_of, raise_ir_version, raise_opset
from vitesse.fusion.shapes import complete_shapes
from vitesse.lowering import rewrite_of
from vitesse.lowering.lower import lower_model

# Below, the axes of reductions and paddings are attributes instead of inputs.
OLDEST = 18
# (operator, attribute) → the version that changed its values, and what a newer value was called before (None: lacking).
_RENAMED: Mapping[tuple[str, str], tuple[int, Mapping[Any, str | None]]] = {
    ("GridSample", "mode"): (20, {"linear": "bilinear", "cubic": "bicubic"}),
    ("Resize", "coordinate_transformation_mode"): (19, {"half_pixel_symmetric": None}),
    ("Pad", "mode"): (19, {"wrap": None}),
    # Windows that begin in the padding counted differently.
    ("AveragePool", "ceil_mode"): (19, {1: None}),
}
# The same signature with another meaning: operator → the version since which it has it.
_OTHER_MEANING = {"GroupNormalization": 21}
_IMAGE_RANK = 4


def at_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return the model in `version` of the default operator domain; `model` stays as it is.

    Towards older versions, operators that are not there yet are written out where `lowering.REWRITES` can (Attention,
    RMSNormalization, Gelu, GroupNormalization); of others every attribute, input and type has to exist there.

    Args:
        version: 18 or later; older graphs write many operators in other forms.

    Raises:
        UsageError: `version` is below 18, or newer than the installed onnx knows.
        ModelError: the graph is not valid, has local functions, or an operator (named) would not mean the same.
    """
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= version <= newest:
        raise UsageError(f"opset {version}", expected=f"{OLDEST} to {newest}")
    graph = load(model)
    if graph.functions:
        raise ModelError(
            "the graph has local functions",
            expected="a graph whose functions are written out",
            fix="clean it first: `vitesse optimize` does so, or vitesse.clean",
        )
    before = opset_of(graph)
    if before == version:
        return model
    if before < version:
        graph = graph.clone()
        raise_opset(graph, version)
        raise_ir_version(graph)
        return ir.to_proto(graph)
    return _lowered(model, before, version)


def _lowered(model: onnx.ModelProto, before: int, version: int) -> onnx.ModelProto:
    names = {
        rewrite.name
        for node in RecursiveGraphIterator(load(model).graph)
        if node.domain in ("", "ai.onnx") and _is_another(node.op_type, before, version)
        for rewrite in [rewrite_of(node.op_type)]
        if rewrite is not None
    }
    written = lower_model(model, sorted(names)) if names else None
    graph = load(model if written is None else written.model)
    signature = signature_of(graph)
    complete_shapes(graph)
    for node in RecursiveGraphIterator(graph.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        why = _is_another(node.op_type, before, version) or _rewritten(node, before, version)
        if why:
            left = {} if written is None else written.reasons
            rewrite = rewrite_of(node.op_type)
            why = "; ".join((why, *(left.get(rewrite.name, ()) if rewrite is not None else ())))
            raise ModelError(
                f"{node.op_type} `{node.name}` cannot be written in opset {version}: {why}",
                expected=f"operators that mean in opset {version} what they mean in {before}",
                fix=f"keep opset {before}, or export the model with opset {version}",
            )
    for domain in ("", "ai.onnx"):
        if domain in graph.opset_imports:
            graph.opset_imports[domain] = version
    return finished(graph, signature, "opset", {}, {}).model


def _is_another(operator: str, before: int, version: int) -> str:
    """Why an operator as a whole is not the same in the older version, or nothing."""
    since = _OTHER_MEANING.get(operator, 0)
    if version < since <= before:
        return f"it has another meaning before opset {since}"
    if _schema(operator, version) is None:
        return "there is none yet"
    return ""


def _rewritten(node: ir.Node, before: int, version: int) -> str:
    """Write a node as the older version does; return why that is not possible, or nothing."""
    new, old = _schema(node.op_type, before), _schema(node.op_type, version)
    if new is None or old is None or new.since_version == old.since_version:
        return ""
    if len(node.inputs) > len(old.inputs) and not _is_variadic(old.inputs):
        return f"it has {len(node.inputs)} inputs, and had up to {len(old.inputs)}"
    if node.op_type == "GridSample" and version < 20 and _rank(node.inputs[0]) != _IMAGE_RANK:
        return "before opset 20 it took images only, not volumes"
    return _attributes(node, new, old, version) or _types(node, old)


def _attributes(node: ir.Node, new: onnx.defs.OpSchema, old: onnx.defs.OpSchema, version: int) -> str:
    """Drop attributes that say nothing, rename values; return why that is not possible, or nothing."""
    for name, formal in new.attributes.items():
        default = _default(formal)
        value = node.attributes[name].value if name in node.attributes else default
        if name not in old.attributes:
            if value != default and not (name == "dilations" and set(value) == {1}):
                return f"its attribute {name} = {value} is not there yet"
            node.attributes.pop(name, None)
        since, values = _RENAMED.get((node.op_type, name), (0, {}))
        if values and version < since and value in values:
            renamed = values[value]
            if renamed is None:
                return f"its {name} cannot be {value} yet"
            node.attributes[name] = ir.AttrString(name, renamed)
    return ""


def _types(node: ir.Node, old: onnx.defs.OpSchema) -> str:
    """Why the older version does not take these types, or nothing; types that are not known are left to the checker."""
    allowed = {one.type_param_str: set(one.allowed_type_strs) for one in old.type_constraints}
    bound: dict[str, str] = {}
    for variable, dtype in (*_typed(old.inputs, node.inputs), *_typed(old.outputs, node.outputs)):
        if dtype not in allowed.get(variable, {variable}):
            return f"it does not take {dtype} yet"
        if variable in allowed and bound.setdefault(variable, dtype) != dtype and not _mixes(old, variable):
            return f"it does not take {bound[variable]} beside {dtype} yet"
    return ""


def _typed(
    formal: Sequence[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]
) -> Iterator[tuple[str, str]]:
    for place, value in enumerate(values):
        if value is not None and value.dtype is not None and formal:
            yield formal[min(place, len(formal) - 1)].type_str, f"tensor({value.dtype.name.lower()})"


def _mixes(schema: onnx.defs.OpSchema, variable: str) -> bool:
    """Whether the variable stands for a list of tensors, each of its own type: what an If or a Loop carries."""
    several = [one for one in (*schema.inputs, *schema.outputs) if one.type_str == variable]
    return any(not one.is_homogeneous for one in several)


def _is_variadic(formal: Sequence[onnx.defs.OpSchema.FormalParameter]) -> bool:
    return bool(formal) and formal[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _default(formal: onnx.defs.OpSchema.Attribute) -> Any:
    """The value an attribute has where it is not given, None where it then has none."""
    if formal.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(formal.default_value)
    return value.decode() if isinstance(value, bytes) else value


def _schema(operator: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return None
