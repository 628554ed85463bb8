from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

import onnxruntime  # noqa: E402

from sources.detr_models import TINY, random_detr, save  # noqa: E402
from vitesse.errors import ModelError, SpecError, UsageError  # noqa: E402
from vitesse.fusion import clean_model, fuse_model  # noqa: E402
from vitesse.sources.detr_parts import parts  # noqa: E402
from vitesse.sources.opening import open_source  # noqa: E402
from vitesse.sources.source import ExportOptions, Given  # noqa: E402
from vitesse.sources.trainable import Trainable, open_trainable, save_trainable, with_weights  # noqa: E402
from vitesse.sources.vit import ViT, ViTConfig  # noqa: E402
from vitesse.sources.vit_checkpoint import default_spec  # noqa: E402

UNEVEN = (("blocks.0.attention", 3), ("blocks.1.mlp.dense1", 24))
VIT = ViTConfig((16, 16), 4, 16, 2, 4, 32, 5, uneven=UNEVEN)


def vit() -> Trainable:
    torch.manual_seed(0)
    module = ViT(VIT)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return with_weights(Trainable("vit", VIT, module, default_spec(VIT.size)), VIT, module.state_dict())


def test_a_checkpoint_opens_with_auxiliary_outputs_and_gradients(tmp_path: Path) -> None:
    path = save(tmp_path / "detr.pth", random_detr())
    found = open_trainable(path, Given(settings={"heads": "4"}))
    assert found.kind == "detr" and found.config == TINY
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in found.module.parameters())
    found.module.fix_size((64, 64))
    logits, boxes, other_logits, other_boxes = found.module(torch.zeros(2, 3, 64, 64))
    assert (logits.shape, boxes.shape) == ((2, 5, 4), (2, 5, 4))
    assert (other_logits.shape, other_boxes.shape) == ((2, 2, 5, 4), (2, 2, 5, 4))


def test_every_part_of_a_detr_that_may_be_uneven_is_a_tensor_of_it() -> None:
    state = random_detr().state_dict()
    assert {part.weight for part in parts(TINY)} <= state.keys()
    assert all(state[part.weight].shape[0] == part.rows * part.regular for part in parts(TINY))


def test_an_uneven_vit_comes_back_from_its_folder_and_through_export_and_fusion(tmp_path: Path) -> None:
    original = vit()
    folder = save_trainable(original, tmp_path / "run")
    images = torch.randn(2, 3, 16, 16)
    again = open_trainable(folder)
    assert again.config == VIT and again.spec == original.spec
    assert torch.equal(again.module(images), original.module(images))

    exported = open_source(folder).export(ExportOptions())
    feeds = {"images": images.numpy()}
    wanted = original.module(images).detach().numpy()
    np.testing.assert_array_equal(exported.reference(feeds)["logits"], wanted)
    fused = fuse_model(clean_model(exported.model).model)
    session = onnxruntime.InferenceSession(
        fused.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, feeds)[0], wanted, rtol=1e-4, atol=1e-5)
    assert sum(node.op_type == "Attention" for node in fused.model.graph.node) == 2


def test_a_copy_shares_no_weights() -> None:
    original = vit()
    other = with_weights(original, VIT, original.module.state_dict())
    with torch.no_grad():
        other.module.get_parameter("head.bias").fill_(7)
    assert not (original.module.get_parameter("head.bias") == 7).any()


def test_weights_and_configuration_of_two_runs_are_refused(tmp_path: Path) -> None:
    first, second = vit(), vit()
    with torch.no_grad():
        second.module.get_parameter("head.bias").fill_(7)
    save_trainable(first, tmp_path / "a")
    save_trainable(second, tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(ModelError, match=r"(?s)are not the weights that .*interrupted") as caught:
        open_trainable(tmp_path / "b")
    assert "run the command that made the folder again" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("vitesse", "yolo", 'expected: "vitesse": "detr" or "vit"'),
        ("config", {"size": [16, 16]}, "the file was edited"),
        ("spec", {}, "the spec is incomplete"),
    ],
)
def test_an_edited_configuration_is_refused(tmp_path: Path, key: str, value: object, text: str) -> None:
    folder = save_trainable(vit(), tmp_path / "run")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, key: value}))
    with pytest.raises((ModelError, SpecError), match=text):
        open_trainable(folder)


def test_sizes_that_the_weights_do_not_have_are_refused(tmp_path: Path) -> None:
    folder = save_trainable(vit(), tmp_path / "run")
    described = json.loads((folder / "config.json").read_text())
    described["config"]["uneven"] = []
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        open_trainable(folder)


@pytest.mark.parametrize("text", ["hf:facebook/detr", "timm:vit", "model.onnx", "detr_resnet50"])
def test_what_cannot_be_trained_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be trained here") as caught:
        open_trainable(text)
    assert "a folder that `vitesse prune`" in caught.value.expected


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model at .*gone\.pth"):
        open_trainable(tmp_path / "gone.pth")
