from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shared_data import shared

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from sources.detr_models import BASIC, TINY, padded, random_detr  # noqa: E402
from vitesse.sources import detr, detr_position  # noqa: E402
from vitesse.sources.detr_checkpoint import load_detr  # noqa: E402

SIZES = [(90, 128), (55, 101), (33, 70)]
CANVAS = (90, 128)


def largest_difference(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> float:
    return max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True))


def originals_mask(
    sizes: list[tuple[int, int]], canvas: tuple[int, int], cells: tuple[int, int]
) -> torch.Tensor:
    """The original's way: a mask of pixels, reduced to the features by nearest neighbours. True = shows the image."""
    pixels = torch.zeros(len(sizes), *canvas)
    for mask, (height, width) in zip(pixels, sizes, strict=True):
        mask[:height, :width] = 1
    return torch.nn.functional.interpolate(pixels[None], size=cells)[0].bool()


def test_the_trained_checkpoint_gives_the_published_outputs_of_all_six_layers() -> None:
    folder = shared("detr_fashion")
    model = load_detr(folder / "detr_fashion.pth")
    with np.load(folder / "reference_outputs.npz", allow_pickle=False) as stored:
        names, logits, boxes = stored["files"], stored["logits"], stored["boxes"]
    pixels = np.stack([np.asarray(Image.open(folder / "val" / str(name)).convert("RGB")) for name in names])
    images = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 3173247
    model.keep_aux = True
    # In float32 the order of additions, which the number of threads changes, moves single logits by 1e-4.
    for form, dtype, tolerance in (
        (copy.deepcopy(model).double(), torch.float64, 1e-4),
        (model, torch.float32, 2e-4),
        (detr.fold_batch_norm(model), torch.float32, 2e-4),
    ):
        last_logits, last_boxes, aux_logits, aux_boxes = form(images.to(dtype))
        found = torch.cat([aux_logits, last_logits[None]])
        np.testing.assert_allclose(found.numpy(), logits, rtol=0, atol=tolerance)
        assert np.abs(found.numpy() - logits).mean() < 1e-5
        found = torch.cat([aux_boxes, last_boxes[None]])
        np.testing.assert_allclose(found.numpy(), boxes, rtol=0, atol=1e-5)


def test_sine_position_of_one_cell_is_the_formula_by_hand() -> None:
    position = detr_position.SinePosition(8)(*(torch.ones(1, n, dtype=torch.bool) for n in (1, 2)))
    # y of the only row is 2π·1/(1 + 1e-6) ≈ 2π: sine ≈ 0, cosine ≈ 1; x of the first of two columns is ≈ π.
    np.testing.assert_allclose(position[0, 0, :2].numpy(), [0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(position[0, 0, 4:6].numpy(), [0.0, -1.0], atol=1e-5)


def test_positions_of_a_padded_image_are_the_running_sums_of_the_original() -> None:
    sizes, cells = [(90, 128), (40, 100)], (3, 4)
    shown = originals_mask(sizes, CANVAS, cells)
    rows, columns = shown[:, :, 0], shown[:, 0, :]
    found = detr_position.SinePosition(TINY.hidden)(rows, columns).view(2, *cells, TINY.hidden)
    exponents = 2 * (torch.arange(16) // 2) / 16
    halves = []
    for axis in (1, 2):
        count = shown.cumsum(axis, dtype=torch.float32)
        count = count / (count.amax(axis, keepdim=True) + 1e-6) * (2 * torch.pi)
        angle = count[..., None] / 10000**exponents
        halves.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(3))
    wanted = torch.cat(halves, dim=3)
    assert float((found - wanted)[shown].abs().max()) < 1e-6
    assert shown.float().mean() < 0.9


def test_covered_cells_are_those_of_torchs_nearest_neighbour_reduction_at_every_size() -> None:
    for pixels in (*range(32, 200), 333, 517, 800, 1333):
        for cells in {-(-pixels // 32), -(-pixels // 16)}:
            covered = torch.arange(1, pixels + 1)
            masks = (torch.arange(pixels) < covered[:, None]).float()
            wanted = torch.nn.functional.interpolate(masks[None], size=cells)[0].bool()
            assert torch.equal(detr_position.covered_cells(cells, pixels, covered), wanted), (pixels, cells)


@pytest.mark.parametrize(
    "config",
    [TINY, BASIC, replace(TINY, dilation=True, depths=(1, 1, 1, 3)), replace(TINY, pre_norm=True),
     replace(TINY, learned_cells=9), replace(TINY, groups=2)],
    ids=["bottleneck", "basic", "dc5", "pre-norm", "learned positions", "groups"],
)  # fmt: skip
def test_a_padded_batch_of_mixed_sizes_gives_the_same_as_one_by_one(config: detr.DETRConfig) -> None:
    model, images, sizes = random_detr(config), padded(SIZES, CANVAS), torch.tensor(SIZES)
    together = model(images, sizes)
    for index in range(len(SIZES)):
        alone = model(images[index : index + 1], sizes[index : index + 1])
        assert largest_difference(tuple(part[index : index + 1] for part in together), alone) < 1e-5
    assert largest_difference(model(images), together) > 1e-3, "the sizes change nothing"


def test_whole_cells_of_padding_do_not_reach_the_result_whatever_they_hold() -> None:
    model, images, sizes = random_detr(), padded([(128, 128)], (128, 512)), torch.tensor([(128, 128)])
    wanted = model(images, sizes)
    # ResNet's receptive field is wide, but not this wide: what is changed lies behind 8 cells of padding.
    images[..., 448:] = 5.0
    assert largest_difference(model(images, sizes), wanted) == 0
    assert largest_difference(model(images), model(padded([(128, 128)], (128, 512)))) > 1e-4


@pytest.mark.parametrize("config", [TINY, BASIC, replace(TINY, dilation=True)], ids=["50", "18", "dc5"])
def test_folding_batch_norm_changes_nothing_but_rounding(config: detr.DETRConfig) -> None:
    model, images = random_detr(config).double(), padded([CANVAS], CANVAS).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = detr.fold_batch_norm(model)
    assert not any(isinstance(module, detr.FrozenBatchNorm) for module in folded.modules())
    assert largest_difference(folded(images), model(images)) < 1e-10
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_baked_positions_are_those_of_images_that_fill_the_tensor() -> None:
    model, images = random_detr(), padded([CANVAS], CANVAS)
    wanted = model(images, torch.tensor([CANVAS]))
    model.fix_size(CANVAS)
    assert largest_difference(model(images), wanted) < 1e-5


def test_dc5_keeps_the_resolution_of_the_last_stage_and_dilates_all_but_its_first_block() -> None:
    config = replace(TINY, dilation=True, depths=(1, 1, 1, 2))
    body = detr.ResNet(config)
    assert body(torch.zeros(1, 3, 90, 128)).shape == (1, 128, 6, 8)
    assert detr.ResNet(TINY)(torch.zeros(1, 3, 90, 128)).shape == (1, 128, 3, 4)
    last = [body.get_submodule(f"layer4.{index}.conv2") for index in range(2)]
    assert [convolution.dilation for convolution in last] == [(1, 1), (2, 2)]


def test_auxiliary_outputs_are_those_of_the_other_layers_and_the_last_stays_what_it_is() -> None:
    model, images = random_detr(), padded([CANVAS], CANVAS)
    wanted = model(images)
    model.keep_aux = True
    logits, boxes, aux_logits, aux_boxes = model(images)
    assert largest_difference((logits, boxes), wanted) < 1e-6
    assert aux_logits.shape == (2, 1, 5, 4)
    assert aux_boxes.shape == (2, 1, 5, 4)
    shorter = replace(TINY, decoder_layers=2)
    truncated = detr.DETR(shorter).eval().requires_grad_(False)
    truncated.load_state_dict({name: model.state_dict()[name] for name in truncated.state_dict()})
    assert largest_difference(truncated(images), (aux_logits[1], aux_boxes[1])) < 1e-6
