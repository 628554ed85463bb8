from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fusing import normal, ops, run
from sources import vit_files as files

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.errors import ModelError  # noqa: E402
from vitesse.fusion import clean_model, fuse_model  # noqa: E402
from vitesse.sources.source import Exported, ExportOptions  # noqa: E402
from vitesse.sources.vit_checkpoint import load_vit, open_vit, read_checkpoint  # noqa: E402
from vitesse.sources.vit_resnet import ResNetStem, StemConfig, same_padding, standardise, units_of  # noqa: E402

Grid = NDArray[np.float64]
Hybrid = tuple[Exported, onnx.ModelProto]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Hybrid]:
    """Export the tiny hybrid at one odd and one even side, and clean and fuse it; each opset once."""
    path = files.save(tmp_path_factory.mktemp("hybrid") / "vit.npz", files.hybrid((1, 1), 2, 5))

    @cache
    def made(opset: int) -> Hybrid:
        found = open_vit(path).export(ExportOptions(opset=opset, size=(37, 50)))
        return found, fuse_model(clean_model(found.model).model).model

    return made


def same_windows(x: Grid, kernel: int, stride: int, fill: float) -> Grid:
    """(height, width, C) → (⌈height / stride⌉, ⌈width / stride⌉, C, kernel, kernel), padded as "SAME" says."""
    pads = []
    for side in x.shape[:2]:
        total = max((int(np.ceil(side / stride)) - 1) * stride + kernel - side, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, (*pads, (0, 0)), constant_values=fill)
    return sliding_window_view(padded, (kernel, kernel), axis=(0, 1))[::stride, ::stride]


def convolved(x: Grid, kernel: Grid, stride: int) -> Grid:
    centred = kernel - kernel.mean((0, 1, 2))
    weight = centred / (np.sqrt((centred**2).mean((0, 1, 2))) + 1e-5)
    return np.einsum("hwcij,ijco->hwo", same_windows(x, kernel.shape[0], stride, 0.0), weight)


def numpy_stem(a: files.Arrays, image: Grid, depths: tuple[int, ...]) -> Grid:
    """The stem in float64, one image (height, width, 3), straight from the arrays."""

    def step(x: Grid, name: str, part: str, stride: int = 1) -> Grid:
        y = convolved(x, a[f"{name}conv{part}/kernel"].astype(np.float64), stride)
        groups = y.reshape(*y.shape[:2], 32, -1)
        centred = groups - groups.mean((0, 1, 3), keepdims=True)
        y = (centred / np.sqrt((centred**2).mean((0, 1, 3), keepdims=True) + 1e-6)).reshape(y.shape)
        return np.asarray(y * a[f"{name}gn{part}/scale"].ravel() + a[f"{name}gn{part}/bias"].ravel())

    x = np.maximum(step(image, "", "_root", 2), 0)
    x = same_windows(x, 3, 2, -np.inf).max((-1, -2))
    for stage, depth in enumerate(depths):
        for unit in range(depth):
            name, stride = f"block{stage + 1}/unit{unit + 1}/", 2 if stage and not unit else 1
            y = np.maximum(step(x, name, "1"), 0)
            y = np.maximum(step(y, name, "2", stride), 0)
            y = step(y, name, "3")
            x = np.maximum((step(x, name, "_proj", stride) if unit == 0 else x) + y, 0)
    return x


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (33, 31)])
@pytest.mark.parametrize("depths", [(), (2, 1)], ids=["root only", "two stages"])
def test_a_stem_gives_what_its_formulas_give_in_float64(
    tmp_path: Path, size: tuple[int, int], depths: tuple[int, ...]
) -> None:
    stored = files.hybrid(depths, 1, 17)
    model = load_vit(files.save(tmp_path / "vit.npz", stored), size)
    image = np.random.default_rng(1).standard_normal((*size, 3))
    with torch.no_grad():
        found = model.stem(torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)))
    wanted = numpy_stem(stored, image, depths)
    assert model.config.stem == StemConfig(files.STEM_WIDTH, depths)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), wanted, atol=2e-5)


def test_group_norms_of_old_and_new_files_are_read_alike(tmp_path: Path) -> None:
    images = torch.from_numpy(normal(1, 3, 32, 32))
    logits = []
    for old_axes in (True, False):
        path = files.save(tmp_path / "vit.npz", files.hybrid((1, 1), 1, 17, old_axes=old_axes))
        with torch.no_grad():
            logits.append(load_vit(path)(images))
    torch.testing.assert_close(logits[0], logits[1], atol=0, rtol=0)


@pytest.mark.parametrize("opset", [18, pytest.param(21, marks=pytest.mark.slow)])
def test_the_exported_hybrid_has_no_padding_nodes_and_the_same_logits(
    hybrid: Callable[[int], Hybrid], opset: int
) -> None:
    found, model = hybrid(opset)
    assert ops(found.model)["Conv"] == 10
    assert ops(model)["Pad"] == 1  # the class token's
    assert ops(model)["InstanceNormalization"] + ops(model)["GroupNormalization"] == 9
    for batch in (1, 3):
        feeds = {"images": normal(batch, 3, 37, 50)}
        for graph in (found.model, model):
            np.testing.assert_allclose(run(graph, feeds)[0], found.reference(feeds)["logits"], atol=2e-5)


@pytest.mark.slow
def test_openvino_answers_the_exported_hybrid_alike(hybrid: Callable[[int], Hybrid], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'vitesse[openvino]'")
    for opset in (18, 21):
        found, model = hybrid(opset)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        feeds = {"images": normal(3, 3, 37, 50)}
        answer = compiled(feeds)[compiled.output(0)]
        np.testing.assert_allclose(answer, found.reference(feeds)["logits"], atol=2e-5)


@pytest.mark.slow
def test_a_hybrid_can_leave_height_and_width_open(tmp_path: Path) -> None:
    path = files.save(tmp_path / "vit.npz", files.hybrid((1, 1), 2, 5))
    source = open_vit(path)
    found = source.export(ExportOptions(dynamic=frozenset({"batch", "height", "width"})))
    assert found.stride == 16
    for batch, height, width in ((1, 32, 32), (3, 48, 64)):
        images = normal(batch, 3, height, width)
        fixed = source.build(ExportOptions(size=(height, width))).module
        with torch.no_grad():
            wanted = fixed(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(run(found.model, {"images": images})[0], wanted, atol=2e-5)


def test_standardised_kernels_have_mean_zero_and_deviation_one() -> None:
    kernel = standardise((5 + 3 * normal(3, 3, 4, 6)).astype(np.float32))
    np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.std((0, 1, 2)), 1, atol=1e-5)
    assert np.isfinite(standardise(np.ones((1, 1, 2, 2), np.float32))).all()


@pytest.mark.parametrize(("side", "kernel", "stride", "pads"), [
    (224, 7, 2, (2, 3)), (225, 7, 2, (3, 3)), (56, 3, 2, (0, 1)), (55, 3, 2, (1, 1)), (56, 3, 1, (1, 1)),
    (55, 1, 2, (0, 0)), (1, 3, 2, (1, 1)),
])  # fmt: skip
def test_same_padding_puts_the_odd_pixel_behind(
    side: int, kernel: int, stride: int, pads: tuple[int, int]
) -> None:
    assert same_padding(side, kernel, stride) == pads
    assert (side + sum(pads) - kernel) // stride + 1 == -(-side // stride)


def test_sizes_of_a_stem_follow_from_its_stages() -> None:
    config = StemConfig(64, (3, 4, 9))
    assert (config.channels, config.stride, config.out(225)) == (1024, 16, 15)
    assert (StemConfig(64, ()).channels, StemConfig(64, ()).stride) == (64, 4)
    assert units_of(StemConfig(64, (2, 1))) == [(64, 1), (64, 1), (128, 2)]
    assert ResNetStem(StemConfig(32, (1, 1)), (33, 31))(torch.zeros(1, 3, 33, 31)).shape == (1, 256, 5, 4)


def test_a_missing_projection_and_an_odd_width_are_named(tmp_path: Path) -> None:
    stored = files.hybrid((1, 1), 1, 17)
    del stored["block2/unit1/conv_proj/kernel"]
    with pytest.raises(ModelError, match=r"1 missing: block2/unit1/conv_proj/kernel \(1, 1, 128, 256\)"):
        read_checkpoint(files.save(tmp_path / "vit.npz", stored))
    stored["conv_root/kernel"] = stored["conv_root/kernel"][..., :20]
    with pytest.raises(ModelError, match="is 20 channels wide"):
        read_checkpoint(files.save(tmp_path / "vit.npz", stored))
