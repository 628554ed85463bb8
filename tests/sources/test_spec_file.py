from __future__ import annotations

import re
import tomllib
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import tiny_graphs
from shared_data import shared
from vitesse.errors import SpecError, UsageError
from vitesse.metadata import write_spec
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.preset import preset_names
from vitesse.sources.signature import check_spec_against
from vitesse.sources.spec_file import example_spec, find_spec
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, spec_from_mapping

GOOD = """
task = "detection"
decode = "detr_softmax"
image_input = "images"
outputs = { logits = "logits", boxes = "boxes" }
labels = ["a", "b", "c", "d"]
[preprocessing]
size = [32, 32]
"""


def _graph(
    inputs: dict[str, tuple[int, list[int | str]]], outputs: dict[str, tuple[int, list[int | str]]]
) -> onnx.ModelProto:
    """A graph with these inputs and outputs; its nodes are never run."""
    made = [helper.make_tensor_value_info(name, *entry) for name, entry in inputs.items()]
    given = [helper.make_tensor_value_info(name, *entry) for name, entry in outputs.items()]
    nodes = [helper.make_node("Identity", [made[0].name], [entry.name]) for entry in given]
    return helper.make_model(helper.make_graph(nodes, "g", made, given))


def _postprocessed(**sides: int) -> onnx.ModelProto:
    side = sides.get("side", 640)
    return _graph(
        {
            "images": (TensorProto.FLOAT, ["N", 3, side, side]),
            "orig_target_sizes": (TensorProto.INT64, ["N", 2]),
        },
        {
            "labels": (TensorProto.INT64, ["N", 300]),
            "boxes": (TensorProto.FLOAT, ["N", 300, 4]),
            "scores": (TensorProto.FLOAT, ["N", 300]),
        },
    )


def _raw(classes: int, size: tuple[int | str, int | str] = (640, 640)) -> onnx.ModelProto:
    return _graph(
        {"pixel_values": (TensorProto.FLOAT, ["N", 3, *size])},
        {
            "logits": (TensorProto.FLOAT, ["N", 300, classes]),
            "pred_boxes": (TensorProto.FLOAT, ["N", 300, 4]),
        },
    )


def _classifier(shape: list[int | str], name: str = "x", output: str = "y") -> onnx.ModelProto:
    return _graph({name: (TensorProto.FLOAT, shape)}, {output: (TensorProto.FLOAT, ["N", 1000])})


def _preset(name: str, model: onnx.ModelProto) -> ModelSpec:
    return find_spec(model, preset=name, spec_file=None)


def test_a_spec_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(GOOD)
    spec = find_spec(tiny_graphs.detector(), preset=None, spec_file=tmp_path / "spec.toml")
    assert spec == tiny_graphs.detector_spec()


def test_a_file_and_a_preset_each_win_over_the_metadata(tmp_path: Path) -> None:
    model = write_spec(tiny_graphs.detector(), tiny_graphs.detector_spec(labels=tuple("wxyz")))
    assert find_spec(model, preset=None, spec_file=None).labels == tuple("wxyz")
    (tmp_path / "spec.toml").write_text(GOOD)
    assert find_spec(model, preset=None, spec_file=tmp_path / "spec.toml").labels == tuple("abcd")
    assert find_spec(model, preset="detr", spec_file=None).labels == ()


def test_a_file_and_a_preset_together_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of --spec and --preset"):
        find_spec(tiny_graphs.detector(), preset="detr", spec_file=tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task = ", "is not TOML"),
        (GOOD + "sise = [1, 1]", "unknown key 'sise'"),
        (GOOD.replace('task = "detection"', ""), "incomplete or wrong: 'task'"),
        (GOOD.replace("[32, 32]", "[64, 32]"), "the spec's size is 64×32"),
    ],
)
def test_a_wrong_spec_file_is_explained(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "spec.toml").write_text(content)
    with pytest.raises(SpecError) as caught:
        find_spec(tiny_graphs.detector(), preset=None, spec_file=tmp_path / "spec.toml")
    assert said in str(caught.value)


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no spec file at .*absent.toml"):
        find_spec(tiny_graphs.detector(), preset=None, spec_file=tmp_path / "absent.toml")


def test_metadata_that_contradicts_the_graph_is_refused() -> None:
    model = write_spec(tiny_graphs.detector(), tiny_graphs.detector_spec(preprocessing={"size": (64, 64)}))
    with pytest.raises(SpecError, match="the spec's size is 64×64"):
        find_spec(model, preset=None, spec_file=None)


def test_without_a_spec_the_graph_and_a_fitting_example_are_shown() -> None:
    model = tiny_graphs.detector()
    with pytest.raises(SpecError) as caught:
        find_spec(model, preset=None, spec_file=None)
    text = str(caught.value)
    assert "images  float32 [N, 3, 32, 32]" in text
    assert example_spec(model) in text
    assert "--preset deimv2|detr|imagenet|rtdetr|vit" in text


@pytest.mark.parametrize(
    ("model", "decode"),
    [
        (tiny_graphs.detector(), Decode.DETR_SOFTMAX),
        (tiny_graphs.classifier(), Decode.LOGITS),
        (_postprocessed(side=320), Decode.POSTPROCESSED),
        (_raw(80, ("H", "W")), Decode.DETR_SOFTMAX),
        (_classifier(["N", 384, 384, 3]), Decode.LOGITS),
    ],
)
def test_the_example_spec_fits_the_graph_it_was_made_for(model: onnx.ModelProto, decode: Decode) -> None:
    spec = spec_from_mapping(tomllib.loads(example_spec(model)))
    check_spec_against(model, spec)
    assert spec.decode is decode


def test_the_example_for_an_unreadable_graph_says_what_is_unclear() -> None:
    features = {"features": (TensorProto.FLOAT, ["N", 8, 7, 7])}
    text = example_spec(_graph({"images": (TensorProto.FLOAT, ["N", 3, 32, 32])}, features))
    assert text.startswith("# None of the outputs tells its role: `features` float32 [N, 8, 7, 7]")
    text = example_spec(_graph({"tokens": (TensorProto.INT64, ["N", "L"])}, features))
    assert "No input has the four dimensions of an image" in text


def test_every_preset_is_tested_here() -> None:
    assert preset_names() == ("deimv2", "detr", "imagenet", "rtdetr", "vit")


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="one of: deimv2, detr, imagenet, rtdetr, vit"):
        _preset("yolo", tiny_graphs.detector())


def test_deimv2_takes_its_size_from_the_graph() -> None:
    spec = _preset("deimv2", _postprocessed(side=320))
    assert (spec.decode, spec.size_input, spec.size_order) == (
        Decode.POSTPROCESSED,
        "orig_target_sizes",
        "wh",
    )
    assert spec.preprocessing.size == (320, 320)
    assert (spec.preprocessing.resize, spec.preprocessing.resample) == (Resize.STRETCH, "bilinear")
    assert (spec.preprocessing.mean, spec.preprocessing.std) == ((0, 0, 0), (1, 1, 1))
    assert (len(spec.labels), spec.labels[0], spec.labels[79]) == (80, "person", "toothbrush")


def test_the_real_deimv2_fits_its_preset() -> None:
    model = load_onnx(shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx")
    spec = _preset("deimv2", model)
    assert (spec.image_input, spec.preprocessing.size) == ("images", (320, 320))
    assert dict(spec.outputs) == {"labels": "labels", "boxes": "boxes", "scores": "scores"}


def test_rtdetr_is_read_by_what_its_graph_gives() -> None:
    assert _preset("rtdetr", _postprocessed()).decode is Decode.POSTPROCESSED
    spec = _preset("rtdetr", _raw(80))
    assert spec.decode is Decode.DETR_SIGMOID
    assert dict(spec.outputs) == {"logits": "logits", "boxes": "pred_boxes"}
    assert len(spec.labels) == 80


def test_detr_has_the_91_ids_of_coco() -> None:
    spec = _preset("detr", _raw(92, ("H", "W")))
    assert (spec.decode, spec.preprocessing.size) == (Decode.DETR_SOFTMAX, (800, 800))
    assert spec.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (len(spec.labels), spec.labels[1], spec.labels[12], spec.labels[90]) == (
        91,
        "person",
        "N/A",
        "toothbrush",
    )


def test_labels_of_coco_are_dropped_for_a_model_with_other_classes() -> None:
    assert _preset("detr", _raw(11)).labels == ()
    assert _preset("rtdetr", _raw(10)).labels == ()


def test_vit_takes_pixels_to_minus_one_to_one_and_the_layout_of_the_graph() -> None:
    spec = _preset("vit", _classifier(["N", 384, 384, 3]))
    assert (spec.preprocessing.layout, spec.preprocessing.size) == ("NHWC", (384, 384))
    assert (spec.preprocessing.mean, spec.preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    assert spec.preprocessing.scale == 1 / 255
    assert spec.preprocessing.resize is Resize.STRETCH


def test_imagenet_finds_tensors_of_any_name_and_falls_back_to_224() -> None:
    spec = _preset("imagenet", _classifier(["N", 3, "H", "W"], "foo", "bar"))
    assert (spec.image_input, dict(spec.outputs)) == ("foo", {"logits": "bar"})
    assert (spec.preprocessing.size, spec.preprocessing.crop_ratio) == ((224, 224), 0.875)
    assert (spec.preprocessing.resize, spec.preprocessing.resample) == (Resize.CROP, "bicubic")


def test_a_preset_that_does_not_fit_lists_what_every_variant_looked_for() -> None:
    with pytest.raises(SpecError) as caught:
        _preset("rtdetr", tiny_graphs.classifier())
    text = str(caught.value)
    assert "with the post-processor in the graph: looked for" in text
    assert (
        "raw logits and boxes, as Hugging Face transformers exports it: looked for an output with the logits"
        in text
    )
    assert "(float [N, queries, classes]), best named logits or pred_logits; found none of that kind" in text
    assert "images  float32 [N, 3, 32, 32]" in text


def test_a_classifier_preset_does_not_take_a_detector() -> None:
    model = _postprocessed()
    del model.graph.input[1]
    with pytest.raises(SpecError, match="it is a detector"):
        _preset("vit", model)


def test_two_candidates_for_one_role_are_not_guessed_at() -> None:
    model = _classifier(["N", 3, 224, 224], output="a")
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 512]))
    with pytest.raises(SpecError, match="found 2 of that kind: a, b"):
        _preset("imagenet", model)


def test_an_extra_padding_mask_keeps_detr_from_fitting() -> None:
    model = _raw(92)
    model.graph.input.append(helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, ["N", "H", "W"]))
    with pytest.raises(SpecError, match="also wants the input `pixel_mask`"):
        _preset("detr", model)


def test_the_specs_in_the_documentation_are_valid_and_name_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "spec.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        spec_from_mapping(tomllib.loads(block))
    for key in (*ModelSpec.__dataclass_fields__, *Preprocessing.__dataclass_fields__, *preset_names()):
        assert f"`{key}`" in text or key == "preprocessing"
