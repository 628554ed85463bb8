import numpy as np
import pytest
from PIL import Image

from shared_data import shared

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.errors import ModelError  # noqa: E402
from vitesse.sources import detr  # noqa: E402

TINY = detr.DETRConfig((64, 96), 8, (4, 8, 16, 32), (1, 1, 1, 1), 32, 8, 64, 1, 2, 5, 4)


def test_the_trained_checkpoint_gives_the_published_outputs_of_all_six_layers() -> None:
    folder = shared("detr_fashion")
    model = detr.load_checkpoint(folder / "detr_fashion.pth", size=(256, 256))
    with np.load(folder / "reference_outputs.npz", allow_pickle=False) as stored:
        names, logits, boxes = stored["files"], stored["logits"], stored["boxes"]
    pixels = np.stack([np.asarray(Image.open(folder / "val" / str(name)).convert("RGB")) for name in names])
    images = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        found = model.forward_all(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
        last = model(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
    assert sum(parameter.numel() for parameter in model.state_dict().values()) == 3173247
    np.testing.assert_allclose(found[0].numpy(), logits, atol=2e-4)
    np.testing.assert_allclose(found[1].numpy(), boxes, atol=1e-5)
    np.testing.assert_allclose(last[0].numpy(), logits[-1], atol=2e-4)


def test_the_config_is_read_back_from_the_shapes_of_any_width_and_depth() -> None:
    state = detr.DETR(TINY).state_dict()
    assert detr.infer_config(state, size=TINY.size, heads=TINY.heads) == TINY


def test_sine_position_of_one_cell_is_the_formula_by_hand() -> None:
    position = detr.sine_position(1, 2, 8)
    # y of the only row is 2π·1/(1 + 1e-6) ≈ 2π: sine ≈ 0, cosine ≈ 1; x of the first of two columns is ≈ π.
    np.testing.assert_allclose(position[0, 0, :2].numpy(), [0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(position[0, 0, 4:6].numpy(), [0.0, -1.0], atol=1e-5)


def test_a_checkpoint_with_missing_and_extra_keys_lists_them(tmp_path: object) -> None:
    state = detr.DETR(TINY).state_dict()
    state["surplus"] = state.pop("class_embed.bias")
    path = f"{tmp_path}/model.pth"
    torch.save({"model": state}, path)
    with pytest.raises(ModelError, match=r"missing \['class_embed.bias'\], extra \['surplus'\]"):
        detr.load_checkpoint(path, size=TINY.size)  # type: ignore[arg-type]


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: object) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("ran",))

    path = f"{tmp_path}/model.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(ModelError, match="wants to run code, which is refused"):
        detr.load_checkpoint(path, size=(64, 64))  # type: ignore[arg-type]
