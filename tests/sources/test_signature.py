from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

import tiny_graphs
from vitesse.errors import SpecError
from vitesse.sources.signature import check_spec_against
from vitesse.spec import ModelSpec


def _refusal(model: onnx.ModelProto, spec: ModelSpec) -> str:
    with pytest.raises(SpecError) as caught:
        check_spec_against(model, spec)
    return str(caught.value)


def test_fitting_specs_are_accepted() -> None:
    check_spec_against(tiny_graphs.detector(), tiny_graphs.detector_spec())
    check_spec_against(tiny_graphs.classifier(), tiny_graphs.classifier_spec())
    check_spec_against(tiny_graphs.classifier(), tiny_graphs.classifier_spec(labels=()))


def test_an_absent_input_is_answered_with_the_graphs_inputs() -> None:
    text = _refusal(tiny_graphs.detector(), tiny_graphs.detector_spec(image_input="pixel_values"))
    assert "image_input is `pixel_values`, and the graph has no such input" in text
    assert "images  float32 [N, 3, 32, 32]" in text


def test_an_absent_output_is_answered_with_the_graphs_outputs() -> None:
    spec = tiny_graphs.detector_spec(outputs={"logits": "pred_logits", "boxes": "boxes"})
    text = _refusal(tiny_graphs.detector(), spec)
    assert "outputs.logits is `pred_logits`, and the graph has no such output" in text
    assert "one of: `logits`, `boxes`" in text


def test_another_size_names_both() -> None:
    text = _refusal(tiny_graphs.detector(), tiny_graphs.detector_spec(preprocessing={"size": (48, 64)}))
    assert "the spec's size is 48×64" in text
    assert "size = [32, 32]" in text


def test_a_symbolic_size_takes_any() -> None:
    model = tiny_graphs.detector()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    check_spec_against(model, tiny_graphs.detector_spec(preprocessing={"size": (48, 64)}))


def test_buckets_need_open_sides() -> None:
    model = tiny_graphs.detector()
    spec = tiny_graphs.detector_spec(
        preprocessing={"size": (32, 32), "resize": "letterbox", "buckets": ((32, 32), (32, 64))}
    )
    text = _refusal(model, spec)
    assert "the spec has a bucket of 32×64; the image input `images` is float32 [N, 3, 32, 32]" in text
    assert "--dynamic batch,height,width" in text
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    check_spec_against(model, spec)


def test_the_other_layout_is_named() -> None:
    spec = tiny_graphs.detector_spec(preprocessing={"size": (32, 32), "layout": "NHWC"})
    assert "in the order NHWC, with 3 channels" in _refusal(tiny_graphs.detector(), spec)


def test_a_float16_input_is_refused_with_the_way_out() -> None:
    model = tiny_graphs.detector()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    text = _refusal(model, tiny_graphs.detector_spec())
    assert "image_input `images` is float16 [N, 3, 32, 32]" in text
    assert "expected: float32" in text


def test_an_input_without_a_value_is_named() -> None:
    model = tiny_graphs.detector()
    model.graph.input.append(helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, ["N", "H", "W"]))
    text = _refusal(model, tiny_graphs.detector_spec())
    assert "also wants the input `pixel_mask` int64 [N, H, W]" in text
    assert "padding mask" in text


def test_another_number_of_classes_counts_no_object() -> None:
    text = _refusal(tiny_graphs.detector(), tiny_graphs.detector_spec(labels=tuple("abcde")))
    assert "`logits` is float32 [N, 64, 5], and the spec has 5 labels" in text
    assert "expected: 4 labels (the last of the logits is no-object)" in text
    text = _refusal(tiny_graphs.classifier(), tiny_graphs.classifier_spec(labels=("one",)))
    assert "expected: 4 labels\n" in text


def test_sigmoid_detectors_have_no_no_object_class() -> None:
    spec = tiny_graphs.detector_spec(decode="detr_sigmoid", labels=tuple("abcde"))
    check_spec_against(tiny_graphs.detector(), spec)


def test_stacked_decoder_layers_are_suspected() -> None:
    model = tiny_graphs.detector()
    dims = model.graph.output[0].type.tensor_type.shape.dim
    dims.insert(0, onnx.TensorShapeProto.Dimension(dim_value=6))
    assert "auxiliary decoder layers are stacked" in _refusal(model, tiny_graphs.detector_spec())


def test_swapped_outputs_are_noticed() -> None:
    spec = tiny_graphs.detector_spec(outputs={"logits": "boxes", "boxes": "logits"}, labels=())
    assert "a last dimension of 4 coordinates" in _refusal(tiny_graphs.detector(), spec)
