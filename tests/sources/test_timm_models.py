"""Classifiers of timm; timm imports only beside a torchvision that fits its torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitesse.data.preprocess import prepare
from vitesse.errors import MissingExtra, ModelError, SpecError, UsageError
from vitesse.sources.source import ExportOptions, Given
from vitesse.spec import Decode, ModelSpec, Resize, Task

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[timm]'")
try:
    from vitesse.sources import timm_models
except (ImportError, MissingExtra) as error:
    pytest.skip(
        f"needs timm: pip install 'vitesse[timm]' ({str(error).splitlines()[0]})", allow_module_level=True
    )

import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from timm.data import create_transform  # noqa: E402

SETTINGS = {"embed_dim": "16", "depth": "1", "num_heads": "2", "patch_size": "8"}
SIZE = (24, 32)
PHOTOGRAPH = Path(__file__).parents[2] / "examples" / "fashion" / "detr" / "calib" / "000001.jpg"


def weights(folder: Path, name: str = "vit_tiny_patch16_224", img_size: Any = SIZE, **changes: Any) -> Path:
    """Random weights of a tiny model of the architecture `name`, with 5 classes."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "num_classes": 5, **changes}
    model = timm.create_model(name, img_size=img_size, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_file(
        {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "w.safetensors"
    )
    return folder / "w.safetensors"


def opened(path: Path, name: str = "vit_tiny_patch16_224", **settings: str) -> Any:
    return timm_models.open_timm(name, Given(settings={**SETTINGS, **settings}), weights=path)


def test_a_file_of_weights_gives_the_answers_of_the_model_it_was_saved_from(tmp_path: Path) -> None:
    path = weights(tmp_path)
    exported = opened(path).export(ExportOptions(size=SIZE))
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, embed_dim=16, depth=1, num_heads=2, patch_size=8, num_classes=5
    ).eval()
    images = torch.randn(3, 3, *SIZE)
    with torch.no_grad():
        untrained = model(images).numpy()
        model.load_state_dict(timm.models.load_state_dict(str(path)))
        expected = model(images).numpy()
    found = exported.reference({"images": images.numpy()})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - untrained).max() > 0.1
    assert (exported.spec.preprocessing.size, exported.dynamic) == (SIZE, {"batch"})


def test_another_image_size_resamples_the_position_embedding(tmp_path: Path) -> None:
    exported = opened(weights(tmp_path, img_size=(32, 32))).export(ExportOptions(size=(48, 48)))
    assert exported.reference({"images": np.zeros((1, 3, 48, 48), np.float32)})["logits"].shape == (1, 5)
    with pytest.raises(AssertionError):
        exported.reference({"images": np.zeros((1, 3, 32, 32), np.float32)})


@pytest.mark.parametrize(
    "data",
    [
        {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"},
        {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"},
        {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
        {"crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bicubic"},
    ],
)
def test_images_are_prepared_as_timms_evaluation_transform_does(data: dict[str, Any]) -> None:
    data = {**data, "input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    rules = timm_models.preprocessing_of(data)
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, rules)
    for size in ((333, 500), (256, 256), (224, 480)):
        with Image.open(PHOTOGRAPH) as opened:
            image = opened.convert("RGB").resize((size[1], size[0]))
        theirs = create_transform(**data, is_training=False)(image).numpy()
        np.testing.assert_allclose(prepare(np.asarray(image), spec), theirs, atol=1e-5)
        wrong = create_transform(**{**data, "crop_pct": 0.8}, is_training=False)(image).numpy()
        assert np.abs(prepare(np.asarray(image), spec) - wrong).max() > 0.1


def test_a_border_cannot_be_said() -> None:
    data = {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bicubic", "input_size": (3, 8, 8)}
    with pytest.raises(SpecError, match=r"crop mode 'border' cannot be said(.|\n)*--spec spec.toml"):
        timm_models.preprocessing_of(data)


def test_the_spec_is_that_of_the_tag(tmp_path: Path) -> None:
    path = weights(tmp_path, "vit_base_patch16_clip_224.openai_ft_in1k", num_classes=1000)
    exported = opened(path, "vit_base_patch16_clip_224.openai_ft_in1k").export(ExportOptions(size=SIZE))
    rules = exported.spec.preprocessing
    assert (rules.resize, rules.resample, round(rules.mean[0], 3)) == (Resize.CROP, "bicubic", 0.481)
    assert exported.spec.labels[0] == "tench, Tinca tinca"


def test_labels_of_other_classes_than_the_published_ones_are_unknown(tmp_path: Path) -> None:
    source = opened(weights(tmp_path))
    assert source.title == "vit_tiny_patch16_224, 5 classes (timm, w.safetensors)"
    assert source.export(ExportOptions(size=SIZE)).spec.labels == ()


def test_the_identity_changes_with_weights_and_settings(tmp_path: Path) -> None:
    path = weights(tmp_path)
    first = opened(path).identity
    assert opened(path).identity == first
    assert opened(path, class_token="False").identity != first
    tensors = timm.models.load_state_dict(str(path))
    tensors["head.bias"] = tensors["head.bias"] + 1e-3
    save_file(tensors, path)
    assert opened(path).identity != first


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit_tinny_patch16_224", {}, r"no model 'vit_tinny_patch16_224'(.|\n)*perhaps vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.made_up", {}, r"no model 'vit_tiny_patch16_224\.made_up'"),
        ("vit_tiny_patch16_224", {"img_size": "64"}, "--size HEIGHTxWIDTH"),
    ],
)
def test_a_wrong_name_or_setting_is_a_usage_error(
    tmp_path: Path, name: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(weights(tmp_path), name, **settings)


def test_a_setting_timm_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be built with .*colour=red"):
        opened(weights(tmp_path), colour="red").export(ExportOptions(size=SIZE))


def test_weights_of_another_depth_are_refused_and_the_tensors_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"do not fit timm:vit_tiny_patch16_224(.|\n)*blocks\.1\.norm1\.weight"
    ):
        opened(weights(tmp_path), depth="2").export(ExportOptions(size=SIZE))


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"have no head: no tensor head\.weight"):
        opened(weights(tmp_path, num_classes=0))


def test_the_batch_stays_open_under_another_name_of_the_input(tmp_path: Path) -> None:
    rules = opened(weights(tmp_path)).export(ExportOptions(size=SIZE)).spec.preprocessing
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "pixel_values", {"logits": "scores"}, rules)
    given = Given(spec=spec, settings=SETTINGS)
    source = timm_models.open_timm("vit_tiny_patch16_224", given, weights=tmp_path / "w.safetensors")
    (image,) = source.export(ExportOptions()).model.graph.input
    assert image.name == "pixel_values"
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_spec_for_a_detector_is_refused(tmp_path: Path) -> None:
    exported = opened(weights(tmp_path)).export(ExportOptions(size=SIZE))
    outputs = {"logits": "logits", "boxes": "boxes"}
    spec = ModelSpec(Task.DETECTION, Decode.DETR_SIGMOID, "images", outputs, exported.spec.preprocessing)
    with pytest.raises(SpecError, match="decodes by 'detr_sigmoid'"):
        timm_models.open_timm(
            "vit_tiny_patch16_224", Given(spec=spec, settings=SETTINGS), weights=tmp_path / "w.safetensors"
        )


def test_without_the_hub_the_error_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="no pretrained weights for timm:vit_tiny_patch16_224") as caught:
        timm_models.open_timm("vit_tiny_patch16_224")
    assert "--weights model.safetensors" in str(caught.value)


def test_auxiliary_outputs_and_open_sizes_are_refused(tmp_path: Path) -> None:
    source = opened(weights(tmp_path))
    with pytest.raises(UsageError, match="--keep-aux"):
        source.export(ExportOptions(size=SIZE, keep_aux=True))
    with pytest.raises(UsageError, match="cannot leave that open"):
        source.export(ExportOptions(size=SIZE, dynamic=frozenset({"height", "width"})))
