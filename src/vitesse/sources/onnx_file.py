"""An ONNX file on disk → a checked model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from vitesse.errors import ModelError
from vitesse.sources.beginnings import refuse_other_files
from vitesse.sources.external_data import external_tensors, load_external
from vitesse.sources.signature import graph_inputs, graph_outputs

# Runtimes register these beyond the ONNX standard; whether one has the operator is for the runtime to say.
_RUNTIME_DOMAINS = frozenset({"com.microsoft", "com.microsoft.nchwc", "org.openvinotoolkit"})


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, its external data included; the result stands alone in memory.

    Models above 2 GB load too: external weights are read tensor by tensor and never serialised for the check.

    Raises:
        ModelError: the file is missing, empty, truncated or not ONNX; it has no graph; its opset or an
            operator is unknown; external data is missing, incomplete or outside the model's folder; the
            checker refuses it.
    """
    content = _read(path)
    model = _parse(content, path)
    _require_graph(model, path)
    _require_known_versions(model, path)
    _require_known_operators(model, path)
    external = external_tensors(model)
    weights = {id(tensor) for tensor in external} & {id(tensor) for tensor in model.graph.initializer}
    for tensor in external:
        if id(tensor) not in weights:
            load_external(tensor, path)
    _run_checker(model, path)
    for tensor in external:
        if id(tensor) in weights:
            load_external(tensor, path)
    return model


def _read(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(path.glob("*.onnx"))
        raise ModelError(
            f"{path} is a folder",
            expected="an .onnx file",
            fix=f"give {inside[0]}" if inside else "give the path of the model file",
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            f"no model at {path}",
            expected="an .onnx file",
            cause="a typing error in the path",
            fix="name a file that is there; a relative path begins in the current folder",
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", expected="a readable .onnx file") from error
    if not content:
        raise ModelError(
            f"{path} is empty",
            expected="an .onnx file",
            cause="a download or an export that stopped at once, or a full disk",
            fix="download or export it again",
        )
    return content


def _parse(content: bytes, path: Path) -> onnx.ModelProto:
    refuse_other_files(path, content[:64], expected="an ONNX model")
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        # A serialised ModelProto starts with its first field, ir_version: tag byte 0x08.
        if content.startswith(b"\x08"):
            raise _truncated(path, len(content)) from error
        raise ModelError(
            f"{path} is not an ONNX model: it starts with {content[:12]!r}",
            expected="an .onnx file",
            cause="another format under this name",
            fix="export the model to ONNX, for example with torch.onnx.export",
        ) from error


def _truncated(path: Path, size: int) -> ModelError:
    return ModelError(
        f"{path} is damaged: it starts like an ONNX model but ends too early ({size} bytes)",
        expected="a complete .onnx file",
        cause="a download or a copy that was cut off",
        fix="download or export it again and compare the size",
    )


def _require_graph(model: onnx.ModelProto, path: Path) -> None:
    if model.HasField("graph") and not model.opset_import:
        raise _truncated(path, path.stat().st_size)
    lacking = [
        what
        for what, values in (
            ("nodes", model.graph.node),
            ("inputs", graph_inputs(model)),
            ("outputs", graph_outputs(model)),
        )
        if not values
    ]
    if lacking:
        raise ModelError(
            f"{path} has no {' and no '.join(lacking)}",
            expected="a graph with inputs, nodes and outputs",
            cause="the file is not an ONNX model, or the export traced nothing",
            fix="export the model again",
        )


def _require_known_versions(model: onnx.ModelProto, path: Path) -> None:
    newest = int(onnx.defs.onnx_opset_version())
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), newest)
    if opset > newest or model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path} uses ONNX opset {opset} and IR version {model.ir_version}",
            expected=f"at most opset {newest} and IR version {onnx.IR_VERSION} (onnx {onnx.__version__})",
            cause="the model was exported with a newer onnx",
            fix="pip install -U onnx onnxruntime, or export with an older opset",
        )


def _require_known_operators(model: onnx.ModelProto, path: Path) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    standard = {schema.domain for schema in onnx.defs.get_all_schemas()}
    for node in _nodes(model.graph):
        domain = _domain(node.domain)
        if (node.domain, node.op_type) in local or domain in _RUNTIME_DOMAINS:
            continue
        name = f"{domain or 'ai.onnx'}::{node.op_type}"
        where = f"node {node.name!r}" if node.name else f"the node that makes {', '.join(node.output)!r}"
        if domain not in standard:
            raise ModelError(
                f"{path}: {where} is {name}, and nothing here knows the domain {domain!r}",
                expected=f"operators of ai.onnx or of {', '.join(sorted(_RUNTIME_DOMAINS))}",
                cause="a custom operator, for example a plugin of the exporting framework",
                fix="export with standard operators only",
            )
        version = opsets.get(domain, 1)
        if not _has_schema(node.op_type, domain, version):
            raise ModelError(
                f"{path}: {where} is {name}, which opset {version} does not have",
                expected="an operator of the ONNX standard",
                cause="a plugin operator, or an opset number that does not belong to this graph",
                fix="export with standard operators only, or with the opset that has it",
            )


def _has_schema(operator: str, domain: str, version: int) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return False
    return not schema.deprecated


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _nodes(inner)


def _run_checker(model: onnx.ModelProto, path: Path) -> None:
    """Check the structure; weights outside the file are declared as inputs: their size does not matter."""
    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    del lean.graph.initializer[:]
    declared = {entry.name for entry in lean.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            lean.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            shape = list(tensor.dims)
            lean.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    try:
        onnx.checker.check_model(lean)
    except onnx.checker.ValidationError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(line for line in lines if not line.startswith("==>"))
        raise ModelError(
            f"{path} is not a valid ONNX graph: {text[:300]}",
            expected="a graph that onnx.checker accepts",
            cause="a faulty export, or a tool that edited the graph wrongly",
            fix="export the model again",
        ) from error
