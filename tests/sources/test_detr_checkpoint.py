from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from sources.detr_models import BASIC, TINY, padded, random_detr, save  # noqa: E402
from vitesse.errors import ModelError, SpecError, UsageError, VitesseError  # noqa: E402
from vitesse.sources import detr_checkpoint  # noqa: E402
from vitesse.sources.detr import DETR, DETRConfig  # noqa: E402
from vitesse.sources.detr_checkpoint import load_detr, open_detr, read_checkpoint  # noqa: E402
from vitesse.sources.source import ExportOptions, Given  # noqa: E402
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task  # noqa: E402

OPEN = ExportOptions(dynamic=frozenset({"batch", "height", "width"}))
SPEC = ModelSpec(
    Task.DETECTION,
    Decode.DETR_SOFTMAX,
    "pixels",
    {"logits": "scores", "boxes": "places"},
    Preprocessing((64, 96), resize=Resize.NONE),
    labels=("cat", "dog", "bird"),
)
VARIANTS = {
    "bottleneck": replace(TINY, heads=8),
    "basic": replace(BASIC, heads=8),
    "pre-norm": replace(TINY, heads=8, pre_norm=True),
    "learned positions": replace(TINY, heads=8, learned_cells=50),
    "groups": replace(TINY, heads=8, groups=2),
    "wide": replace(TINY, heads=8, widths=(8, 16, 32, 64)),
    "deep": replace(TINY, heads=8, depths=(3, 4, 6, 3), encoder_layers=0, decoder_layers=1),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny.pth", random_detr())


def refusal(kind: type[VitesseError], path: Path, given: Given | None = None) -> str:
    with pytest.raises(kind) as caught:
        open_detr(path, given)
    return str(caught.value)


def changed(path: Path, **tensors: torch.Tensor | None) -> Path:
    """Write the tiny model with some tensors replaced, or dropped where None."""
    state = {**random_detr().state_dict(), **tensors}
    torch.save({"model": {name: tensor for name, tensor in state.items() if tensor is not None}}, path)
    return path


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_config_is_read_back_from_the_shapes_of_any_width_and_depth(
    tmp_path: Path, config: DETRConfig
) -> None:
    model = random_detr(config)
    found = load_detr(save(tmp_path / "any.pth", model))
    assert found.config == config
    images = padded([(64, 96)], (64, 96))
    assert all(torch.equal(f, w) for f, w in zip(found(images), model(images), strict=True))


def test_heads_and_dilation_come_from_the_settings_then_the_options_of_training_then_the_name(
    tmp_path: Path,
) -> None:
    model = random_detr(replace(TINY, dilation=True))
    bare = save(tmp_path / "detr-r50-DC5-1234.pth", model)
    trained = save(tmp_path / "a.pth", model, args=argparse.Namespace(nheads=2, dilation=True))
    plain = save(tmp_path / "detr-dc5.pth", model, args=argparse.Namespace(nheads=2, dilation=False))

    def seen(path: Path, **settings: str) -> tuple[int, bool]:
        config = read_checkpoint(path, settings).config
        return config.heads, config.dilation

    assert seen(bare) == (8, True)
    assert seen(trained) == (2, True)
    assert seen(plain) == (2, False)
    assert seen(trained, heads="4", dilation="false") == (4, False)


def test_the_title_says_what_it_is(path: Path, tmp_path: Path) -> None:
    assert open_detr(path).title == "DETR, ResNet of 1+1+1+1 blocks, 3 classes (tiny.pth)"
    real = DETRConfig(
        64, (64, 128, 256, 512), (256, 512, 1024, 2048), (3, 4, 6, 3), 256, 8, 2048, 6, 6, 100, 92
    )
    assert detr_checkpoint.describe(real) == "DETR, ResNet-50"
    assert (
        detr_checkpoint.describe(replace(real, depths=(3, 4, 23, 3), dilation=True)) == "DETR, ResNet-101 DC5"
    )
    coco = save(tmp_path / "a.pth", random_detr(replace(TINY, logits=92)))
    assert open_detr(coco, title="detr_resnet50").title.endswith("91 classes (detr_resnet50)")


def test_the_identity_depends_on_the_weights_the_settings_and_the_spec(path: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.pth", random_detr(seed=1))
    sources = [open_detr(path, Given(SPEC, settings)) for settings in ({}, {"heads": "4"})]
    identities = {
        *(source.identity for source in sources),
        open_detr(path).identity,
        open_detr(other).identity,
    }
    assert len(identities) == 4
    assert open_detr(path).identity == open_detr(path).identity


def test_the_spec_is_that_of_coco_only_where_the_classes_are(path: Path, tmp_path: Path) -> None:
    coco = random_detr(replace(TINY, logits=92))
    fixed = detr_checkpoint.network(coco, None, ExportOptions())
    assert fixed.spec.preprocessing.size == (800, 1066)
    assert fixed.spec.preprocessing.resize is Resize.STRETCH
    assert fixed.spec.preprocessing.mean == (0.485, 0.456, 0.406)
    assert fixed.spec.labels[:2] == ("N/A", "person")
    assert len(fixed.spec.labels) == 91
    assert fixed.spec.valid_size_input is None
    assert fixed.inputs["images"].shape == (2, 3, 800, 1066)
    opened = detr_checkpoint.network(coco, None, OPEN)
    assert opened.spec.preprocessing.size == (800, 1333)
    assert opened.spec.preprocessing.resize is Resize.SHORTEST
    assert opened.spec.valid_size_input == "sizes"
    assert list(opened.inputs) == ["images", "sizes"]
    assert detr_checkpoint.network(load_detr(path), None, ExportOptions()).spec.labels == ()


def test_a_given_spec_wins_and_the_size_of_the_options_over_its_own(path: Path) -> None:
    model = load_detr(path)
    network = detr_checkpoint.network(model, SPEC, ExportOptions(size=(96, 64)))
    assert network.spec == replace(SPEC, preprocessing=replace(SPEC.preprocessing, size=(96, 64)))
    assert network.inputs["pixels"].shape == (2, 3, 96, 64)
    assert network.outputs == ("scores", "places")
    assert detr_checkpoint.network(model, SPEC, ExportOptions()).inputs["pixels"].shape == (2, 3, 64, 96)
    named = replace(SPEC, valid_size_input="valid")
    assert list(detr_checkpoint.network(model, named, ExportOptions()).inputs) == ["pixels", "valid"]
    assert detr_checkpoint.network(model, named, OPEN).spec.valid_size_input == "valid"


def test_open_height_and_width_are_traced_apart(path: Path) -> None:
    square = replace(OPEN, size=(64, 64))
    assert detr_checkpoint.network(load_detr(path), None, square).inputs["images"].shape == (2, 3, 64, 96)


def test_building_a_form_leaves_the_model_as_it_was(path: Path) -> None:
    model = load_detr(path)
    before = model.state_dict()
    detr_checkpoint.network(model, None, ExportOptions(size=(64, 64), keep_aux=True))
    assert model.position is None
    assert not model.keep_aux
    assert model.state_dict().keys() == before.keys()


def test_a_size_or_resize_that_cannot_be_is_refused(path: Path) -> None:
    model = load_detr(path)
    with pytest.raises(UsageError, match="--size 31x64"):
        detr_checkpoint.network(model, None, ExportOptions(size=(31, 64)))
    shortest = replace(SPEC, preprocessing=replace(SPEC.preprocessing, resize=Resize.SHORTEST))
    with pytest.raises(SpecError, match="--dynamic batch,height,width"):
        detr_checkpoint.network(model, shortest, ExportOptions())
    assert detr_checkpoint.network(model, shortest, OPEN).spec.preprocessing.resize is Resize.SHORTEST
    learned = random_detr(replace(TINY, learned_cells=4))
    with pytest.raises(UsageError, match=r"4 cells a side(.|\n)*at most 128 pixels"):
        detr_checkpoint.network(learned, None, ExportOptions(size=(64, 129)))


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, decode=Decode.POSTPROCESSED, outputs={"labels": "l", "boxes": "b", "scores": "s"}),
        ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((64, 64))),
        replace(SPEC, size_input="orig"),
        replace(SPEC, preprocessing=Preprocessing((64, 64), layout="NHWC")),
    ],
    ids=["postprocessed", "classification", "size input", "NHWC"],
)
def test_a_spec_of_another_kind_of_model_is_refused(path: Path, spec: ModelSpec) -> None:
    assert "the spec " in refusal(SpecError, path, Given(spec))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": "many"}, "--set heads=many"),
        ({"heads": "0"}, "0 attention heads"),
        ({"heads": "5"}, "--set heads=N"),
        ({"dilation": "perhaps"}, "true or false"),
        ({"queries": "3"}, "a DETR checkpoint has no such setting"),
    ],
)
def test_a_wrong_setting_is_a_usage_error(path: Path, settings: dict[str, str], said: str) -> None:
    assert said in refusal(UsageError, path, Given(settings=settings))


def test_dc5_with_basic_blocks_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "basic.pth", random_detr(BASIC))
    assert "--set dilation=false" in refusal(UsageError, path, Given(settings={"dilation": "true"}))


def test_missing_extra_and_misshapen_keys_are_listed_with_counts(tmp_path: Path) -> None:
    text = refusal(
        ModelError,
        changed(
            tmp_path / "a.pth",
            **{
                "class_embed.bias": None,
                "transformer.encoder.layers.0.norm1.weight": None,
                "transformer.encoder.layers.0.norm1.bias": None,
                "surplus.weight": torch.ones(1),
                "input_proj.bias": torch.ones(7),
            },
        ),
    )
    assert "  3 missing: class_embed.bias, transformer.encoder.layers.0.norm1.{bias,weight}" in text
    assert "  1 not understood: surplus.weight" in text
    assert "  1 of another shape: input_proj.bias (7,), expected (32,)" in text


def test_a_long_list_of_keys_is_cut_with_a_count(tmp_path: Path) -> None:
    surplus = {f"surplus{index}.weight": torch.ones(1) for index in range(30)}
    text = refusal(ModelError, changed(tmp_path / "a.pth", **surplus))
    assert "  30 not understood: surplus0.weight, " in text
    assert "and 22 more" in text
    assert text.count("surplus") == 8


@pytest.mark.parametrize(
    "name", ["query_embed.weight", "class_embed.weight", "backbone.0.body.layer3.0.conv3.weight"]
)
def test_a_key_that_tells_a_size_is_named_when_it_is_missing(tmp_path: Path, name: str) -> None:
    assert f"has no '{name}'" in refusal(ModelError, changed(tmp_path / "a.pth", **{name: None}))
    assert f"has no '{name}'" in refusal(ModelError, changed(tmp_path / "b.pth", **{name: torch.tensor(1.0)}))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("class_labels_classifier.weight", "hf:FOLDER"),
        ("model.encoder.layers.0.fc1.weight", "hf:FOLDER"),
        ("transformer.encoder.layers.0.self_attn.sampling_offsets.weight", "a Deformable DETR"),
        ("transformer.decoder.layers.0.ca_qcontent_proj.weight", "a Conditional DETR"),
        ("backbone.res_layers.0.blocks.0.branch2a.conv.weight", "an RT-DETR"),
        ("fc.weight", "a plain ResNet"),
        ("blocks.0.attn.qkv.weight", "timm:NAME"),
    ],
)
def test_another_model_is_recognised(tmp_path: Path, key: str, said: str) -> None:
    torch.save({key: torch.ones(3, 3), "other": torch.ones(1)}, tmp_path / "a.pth")
    assert said in refusal(ModelError, tmp_path / "a.pth")


def test_of_a_panoptic_checkpoint_the_detector_is_taken(tmp_path: Path) -> None:
    model = random_detr()
    state = {f"detr.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"mask_head.lay1.weight": torch.ones(2), "bbox_attention.q_linear.weight": torch.ones(2)}
    torch.save({"model": state}, tmp_path / "panoptic.pth")
    source = open_detr(tmp_path / "panoptic.pth")
    assert source.title.endswith("detection part of a panoptic checkpoint (panoptic.pth)")
    found = load_detr(tmp_path / "panoptic.pth").state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


def test_the_counters_of_batch_norm_are_left_out_as_the_original_does(tmp_path: Path) -> None:
    counters = {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(5)}
    assert isinstance(load_detr(changed(tmp_path / "a.pth", **counters)), DETR)


def test_averaged_weights_are_named_in_the_title(tmp_path: Path) -> None:
    state = random_detr().state_dict()
    torch.save({"model": state, "model_ema": state}, tmp_path / "a.pth")
    assert "averaged weights (a.pth)" in open_detr(tmp_path / "a.pth").title
