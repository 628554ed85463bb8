import pytest

from vitesse.scopes import (
    MODULE_SCOPES,
    common_path,
    inherited,
    module_path,
    path_in_name,
    path_of,
    scopes_note,
)


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        (
            ["", "transformer.decoder.layers.0", "transformer.decoder.layers.0.self_attn", "view_4"],
            ("transformer", "decoder", "layers.0", "self_attn"),
        ),
        (["", "class_embed", "linear_78"], ("class_embed",)),
        (["", "sigmoid"], ()),
        (["_empty_nn_module_stack_from_metadata_hook", "sym_size_int_2"], ()),
    ],
)
def test_the_list_of_torchs_exporter_becomes_a_path(scopes: list[str], path: tuple[str, ...]) -> None:
    assert module_path({MODULE_SCOPES: str(scopes)}) == path


def test_the_notes_of_other_versions_are_read_too() -> None:
    namespace = ": models.DETR/class_embed: torch.nn.Linear/linear_78: aten.linear.default"
    assert module_path({"namespace": namespace}) == ("class_embed",)
    classes = "['models.DETR', 'torch.nn.Linear', 'aten.linear.default']"
    assert module_path({"pkg.torch.onnx.class_hierarchy": classes}) == ("models.DETR", "torch.nn.Linear")


@pytest.mark.parametrize("text", ["", "not a list", "__import__('os')", "[]", "{'a': 1}"])
def test_a_note_that_is_no_list_is_no_note(text: str) -> None:
    assert module_path({MODULE_SCOPES: text}) is None


def test_a_node_name_of_the_old_exporter_is_a_path() -> None:
    assert path_in_name("/model/encoder/layers.0/self_attn/MatMul") == (
        "model",
        "encoder",
        "layers.0",
        "self_attn",
    )
    assert path_in_name("/model/stages.0/blocks/blocks.1/Conv") == ("model", "stages.0", "blocks.1")
    assert path_in_name("/Sigmoid") == ()
    assert path_in_name("node_Conv_12") is None


def test_a_note_goes_before_a_name() -> None:
    assert path_of("/model/MatMul", {MODULE_SCOPES: "['', 'head', 'linear']"}) == ("head",)
    assert path_of("/model/MatMul", {}) == ("model",)


def test_nodes_that_become_one_share_their_outer_modules() -> None:
    query, values = ("layers.0", "attention", "query"), ("layers.0", "attention", "values")
    assert common_path([query, None, values]) == ("layers.0", "attention")
    assert common_path([("backbone",), ("head",)]) == ("head",)
    assert common_path([None, None]) is None


def test_a_written_note_is_read_back() -> None:
    path = ("transformer", "encoder", "layers.3")
    assert module_path({MODULE_SCOPES: scopes_note(path, "MatMul_3")}) == path
    assert module_path({MODULE_SCOPES: scopes_note((), "Add")}) == ()


def test_a_name_that_tells_the_module_is_handed_on_as_a_note() -> None:
    assert module_path(inherited("/model/norm/Add", {"other": "kept"})) == ("model", "norm")
    assert inherited("/model/norm/Add", {"other": "kept"})["other"] == "kept"
    assert inherited("node_3", {}) == {}
