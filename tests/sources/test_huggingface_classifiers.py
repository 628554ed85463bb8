"""Classifiers of transformers give what transformers gives, at the trained image size and at others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[huggingface]'")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'vitesse[huggingface]'"
)

from fusing import run  # noqa: E402
from sources.classifier_rows import PLAIN, ROWS, VIT, randomise, transformers_source  # noqa: E402
from sources.examining import made  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.sources.huggingface.classifiers import CLASSIFIERS  # noqa: E402
from vitesse.sources.source import ExportOptions  # noqa: E402
from vitesse.spec import Decode, Task  # noqa: E402

BATCH = 3
VIT_ROW, BEIT_ROW = (next(row for row in ROWS if row.name == name) for name in ("ViT (HF), one size", "BEiT"))


def theirs(folder: Path, loader: str, size: tuple[int, int], **options: Any) -> tuple[Any, np.ndarray]:
    """Random images, and the logits of transformers loading the folder by itself, with its own attention."""
    images = torch.randn(BATCH, 3, *size, generator=torch.Generator().manual_seed(3))
    model = getattr(transformers, loader).from_pretrained(folder).eval()
    with torch.no_grad():
        return images.numpy(), model(images, **options).logits.numpy()


@pytest.mark.parametrize("size", [(32, 32), (48, 40)], ids=["trained size", "another size"])
def test_a_vit_answers_as_transformers_does(tmp_path: Path, size: tuple[int, int]) -> None:
    loader = "ViTForImageClassification"
    source = transformers_source(loader, PLAIN, tmp_path)
    if size == VIT_ROW.size:
        exported = made(VIT_ROW, tmp_path / "row").exported
    else:
        exported = source.export(ExportOptions(size=size))
    images, expected = theirs(tmp_path, loader, size, interpolate_pos_encoding=True)
    found = run(exported.model, {"images": images})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert exported.spec.preprocessing.size == size
    assert (exported.spec.task, exported.spec.decode) == (Task.CLASSIFICATION, Decode.LOGITS)


@pytest.mark.parametrize(
    "loader", ["Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"]
)
def test_dinov2_of_another_size_answers_as_transformers_does(tmp_path: Path, loader: str) -> None:
    source = transformers_source(loader, {**VIT, "mlp_ratio": 2}, tmp_path)
    exported = source.export(ExportOptions(size=(40, 48)))
    images, expected = theirs(tmp_path, loader, (40, 48))
    np.testing.assert_allclose(run(exported.model, {"images": images})[0], expected, atol=1e-4)


def test_distilled_deit_answers_with_the_mean_of_both_heads(tmp_path: Path) -> None:
    loader = "DeiTForImageClassificationWithTeacher"
    exported = transformers_source(loader, PLAIN, tmp_path).export(ExportOptions())
    images, expected = theirs(tmp_path, loader, (32, 32))
    found = run(exported.model, {"images": images})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    model = getattr(transformers, loader).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        alone = model(torch.from_numpy(images)).cls_logits.numpy()
    assert np.abs(found - alone).max() > 0.01


def test_written_out_attention_answers_as_transformers_own_operator(tmp_path: Path) -> None:
    loader = "BeitForImageClassification"
    source = transformers_source(loader, {**PLAIN, "use_relative_position_bias": True}, tmp_path)
    images, expected = theirs(tmp_path, loader, (32, 32))
    assert made(BEIT_ROW, tmp_path / "row").source.identity == source.identity
    found = made(BEIT_ROW, tmp_path / "row").exported.reference({"images": images})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_the_last_layers_class_token_goes_through_the_head(tmp_path: Path) -> None:
    exported = made(VIT_ROW, tmp_path).exported
    (output,) = exported.model.graph.output
    assert output.name == "logits"
    assert [side.dim_value or side.dim_param for side in output.type.tensor_type.shape.dim] == ["batch", 10]


def test_a_size_that_patches_do_not_divide_is_refused(tmp_path: Path) -> None:
    source = transformers_source("ViTForImageClassification", PLAIN, tmp_path)
    with pytest.raises(UsageError, match=r"image size of 36×32(.|\n)*multiples of 8"):
        source.export(ExportOptions(size=(36, 32)))


def test_an_open_image_size_is_refused_where_the_bias_is_made_for_one(tmp_path: Path) -> None:
    source = transformers_source("BeitForImageClassification", PLAIN, tmp_path)
    with pytest.raises(UsageError, match="cannot leave that open"):
        source.export(ExportOptions(dynamic=frozenset({"batch", "height", "width"})))


def test_random_models_differ_from_where_training_starts() -> None:
    """Else a norm's scale of 1 or a bias of 0 that export dropped would go unnoticed."""
    kind = transformers.ViTForImageClassification
    model = randomise(kind(kind.config_class(**PLAIN)))
    for name, parameter in model.named_parameters():
        assert parameter.detach().std() > 0.02, name
        assert not torch.all(parameter == parameter.flatten()[0]), name


def test_every_family_names_a_class_of_transformers_with_a_head() -> None:
    for family in CLASSIFIERS:
        assert family.decode is Decode.LOGITS
        assert getattr(transformers, family.loader).config_class.model_type == family.model_type
