"""What a runtime's refusal says: the operator, the node, the module it came from, and the rewrite that exists."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from vitesse.backends.refusal import refusal
from vitesse.scopes import MODULE_SCOPES

INFO = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])


def model(path: Path, operator: str, name: str, scopes: list[str] | None = None, domain: str = "") -> Path:
    node = onnx.helper.make_node(operator, ["x"], ["y"], name, domain=domain)
    if scopes:
        node.metadata_props.add(key=MODULE_SCOPES, value=str(scopes))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [INFO], [INFO])), path)
    return path


class Refused(Exception):
    """What a runtime raises."""


def test_the_module_of_the_exporters_note_and_the_rewrite_are_named(tmp_path: Path) -> None:
    scopes = ["", "decoder", "decoder.layers.2", "node_grid"]
    path = model(tmp_path / "m.onnx", "GridSample", "node_grid", scopes)
    error = refusal("Engine 1.0", "loading", path, Refused("no importer for GridSample (node_grid)"))
    assert error.what == f"Engine 1.0 refuses {path} while loading it: no importer for GridSample (node_grid)"
    assert error.cause == (
        "operator GridSample, domain 'ai.onnx', node 'node_grid', of the module decoder.layers.2"
    )
    assert error.fix == "--lower grid_sample writes GridSample in more basic operators"


def test_the_module_is_read_from_the_name_that_the_old_exporter_wrote(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", "Gelu", "/model/encoder/layers.0/Gelu")
    error = refusal("Engine 1.0", "loading", path, Refused("/model/encoder/layers.0/Gelu: unsupported"))
    assert error.cause.endswith("node '/model/encoder/layers.0/Gelu', of the module model.encoder.layers.0")
    assert error.fix.startswith("--lower gelu ")


@pytest.mark.parametrize(("operator", "domain"), [("DeformConv", ""), ("Gelu", "com.microsoft")])
def test_an_operator_without_a_rewrite_says_so(tmp_path: Path, operator: str, domain: str) -> None:
    path = model(tmp_path / "m.onnx", operator, "odd", domain=domain)
    error = refusal("Engine 1.0", "loading", path, Refused(f"{operator} is not supported"))
    assert error.cause == f"operator {operator}, domain {domain or 'ai.onnx'!r}, node 'odd'"
    assert error.fix == f"no rewrite of {operator} exists: export with another opset, or try another target"


def test_a_failure_while_running_names_the_module_but_no_rewrite(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", "Gelu", "/encoder/Gelu")
    error = refusal("Engine 1.0", "running", path, Refused("/encoder/Gelu: shapes differ"))
    assert error.cause.endswith("of the module encoder")
    assert error.fix == ""
