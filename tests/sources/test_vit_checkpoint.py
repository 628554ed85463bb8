import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared_data import shared
from sources import vit_files as files

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.errors import ModelError, SpecError, UsageError  # noqa: E402
from vitesse.sources.source import ExportOptions, Given  # noqa: E402
from vitesse.sources.vit import Pooling, ViTConfig, resized, sine_position  # noqa: E402
from vitesse.sources.vit_checkpoint import build, describe, load_vit, open_vit, read_checkpoint  # noqa: E402
from vitesse.sources.vit_resnet import StemConfig  # noqa: E402
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task  # noqa: E402


def answer(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    model = load_vit(path, size)
    images = np.random.default_rng(1).standard_normal((2, 3, *model.config.size), np.float32)
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def norm(x: NDArray[np.float64], a: files.Arrays, name: str) -> NDArray[np.float64]:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * a[f"{name}/scale"] + a[f"{name}/bias"]


def numpy_forward(stored: files.Arrays, image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The formulas of the paper in float64, straight from the arrays under their released names, one 8×8 image."""
    a = {name: array.astype(np.float64) for name, array in stored.items()}
    patches = image.reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, 4, 4, 3)
    x = np.einsum("nijc,ijcd->nd", patches, a["embedding/kernel"]) + a["embedding/bias"]
    x = (np.concatenate([a["cls"][0], x]) if "cls" in a else x) + a[files.POSITION][0]
    for index in range(2):
        block = f"Transformer/encoderblock_{index}/"
        y, mha = norm(x, a, f"{block}LayerNorm_0"), f"{block}MultiHeadDotProductAttention_1/"
        q, k, v = (
            np.einsum("td,dhe->hte", y, a[f"{mha}{p}/kernel"]) + a[f"{mha}{p}/bias"][:, None]
            for p in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / 2.0)
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + np.einsum("hte,hed->td", mixed, a[f"{mha}out/kernel"]) + a[f"{mha}out/bias"]
        mlp = f"{block}MlpBlock_3/Dense_"
        y = norm(x, a, f"{block}LayerNorm_2") @ a[f"{mlp}0/kernel"] + a[f"{mlp}0/bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ a[f"{mlp}1/kernel"] + a[f"{mlp}1/bias"]
    x = norm(x, a, "Transformer/encoder_norm")
    pooled = x[0] if "cls" in a else x.mean(0)
    if "pre_logits/kernel" in a:
        pooled = np.tanh(pooled @ a["pre_logits/kernel"] + a["pre_logits/bias"])
    return np.asarray(pooled @ a["head/kernel"] + a["head/bias"])


@pytest.mark.parametrize("token", [True, False], ids=["class token", "gap"])
@pytest.mark.parametrize("representation", [None, 6], ids=["plain", "pre_logits"])
def test_a_checkpoint_gives_what_the_formulas_of_the_paper_give_in_float64(
    tmp_path: Path, token: bool, representation: int | None
) -> None:
    stored = files.arrays(token=token, representation=representation)
    image = np.random.default_rng(1).standard_normal((8, 8, 3))
    with torch.no_grad():
        images = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        found = load_vit(files.save(tmp_path / "vit.npz", stored))(images)[0].numpy()
    np.testing.assert_allclose(found, numpy_forward(stored, image), atol=2e-5)
    stored["head/bias"][0] += 1e-3
    assert np.abs(found - numpy_forward(stored, image)).max() > 9e-4


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/"])
@pytest.mark.parametrize("style", ["released", "linen", "stacked", "stacked linen"])
def test_every_naming_of_the_same_weights_gives_the_same_logits(
    tmp_path: Path, prefix: str, style: str
) -> None:
    plain = files.arrays()
    other = files.linen(plain) if "linen" in style else plain
    other = files.stacked(other) if "stacked" in style else other
    other = {name: other[name] for name in reversed(other)}  # nothing may hang on the order
    path = files.save(tmp_path / "other.npz", files.below(prefix, other))
    np.testing.assert_array_equal(answer(path), answer(files.save(tmp_path / "plain.npz", plain)))


@pytest.mark.parametrize("place", ["pos_embedding", "Transformer/pos_embedding"])
def test_big_vision_has_no_position_for_the_class_token(tmp_path: Path, place: str) -> None:
    original = files.arrays()
    theirs = files.linen(original)
    position = theirs.pop(files.POSITION)
    theirs["cls"] = theirs["cls"] + position[:, :1]
    theirs[place] = position[:, 1:]
    path = files.save(tmp_path / "theirs.npz", files.below("params/", theirs))
    np.testing.assert_array_equal(answer(path), answer(files.save(tmp_path / "plain.npz", original)))


def test_what_training_keeps_beside_the_parameters_is_not_read(tmp_path: Path) -> None:
    plain = files.arrays()
    state = {"opt/0/mu/head/bias": np.zeros(3), "chrono/steps": np.zeros(1, np.int64)}
    path = files.save(tmp_path / "state.npz", {**files.below("params/", plain), **state})
    np.testing.assert_array_equal(answer(path), answer(files.save(tmp_path / "plain.npz", plain)))


def test_the_trained_checkpoint_has_the_sizes_its_readme_states() -> None:
    model = load_vit(shared("vit_fashion") / "vit_fashion.npz")
    assert model.config == ViTConfig((56, 56), 8, 128, 6, 4, 512, 10)
    assert 1.215e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.225e6


def test_the_position_embedding_is_resized_as_scipy_does(tmp_path: Path) -> None:
    ndimage = pytest.importorskip(
        "scipy.ndimage", reason="the original resizes with scipy: pip install scipy"
    )
    stored = files.arrays(tokens=26)
    checkpoint = read_checkpoint(files.save(tmp_path / "vit.npz", stored))
    for rows, columns in ((7, 7), (3, 8), (1, 5), (2, 1)):
        model = build(checkpoint, (4 * rows, 4 * columns))
        grid = stored[files.POSITION][0, 1:].reshape(5, 5, 8)
        wanted = ndimage.zoom(grid, (rows / 5, columns / 5, 1), order=1).reshape(-1, 8)
        found = model.state_dict()["position.tokens"][0].numpy()
        np.testing.assert_allclose(found[1:], wanted, atol=1e-6)
        np.testing.assert_array_equal(found[0], stored["cls"][0, 0] + stored[files.POSITION][0, 0])
    other = torch.nn.functional.interpolate(checkpoint.grid, size=(7, 7), mode="bilinear")
    assert (
        other - resized(checkpoint.grid, (7, 7))
    ).abs().max() > 0.1  # without aligned corners it is another


def test_a_grid_that_is_not_square_must_be_told(tmp_path: Path) -> None:
    path = files.save(tmp_path / "vit.npz", files.arrays(tokens=7))
    with pytest.raises(ModelError, match=r"has 7 position embeddings(.*\n)*.*--set grid=ROWSxCOLUMNS"):
        read_checkpoint(path)
    assert read_checkpoint(path, {"grid": "2x3"}).config.size == (8, 12)
    assert read_checkpoint(path, {"grid": "7x1"}).config.size == (28, 4)
    with pytest.raises(ModelError, match=r"7 position embeddings, and grid=3x3 was given"):
        read_checkpoint(path, {"grid": "3x3"})
    with pytest.raises(UsageError, match="--set grid=0x7"):
        read_checkpoint(path, {"grid": "0x7"})


def test_a_fixed_sine_embedding_is_used_only_when_asked_for(tmp_path: Path) -> None:
    stored = files.linen(files.arrays(token=False))
    learned = files.save(tmp_path / "learned.npz", stored)
    del stored[files.POSITION]
    path = files.save(tmp_path / "vit.npz", stored)
    with pytest.raises(ModelError, match=r"no position embedding(.*\n)*.*--set position=sine"):
        read_checkpoint(path)
    assert read_checkpoint(path, {"position": "sine"}).config.size == (224, 224)
    assert read_checkpoint(path, {"position": "sine", "grid": "3x5"}).config.size == (12, 20)
    with pytest.raises(UsageError, match="only for a checkpoint without"):
        read_checkpoint(learned, {"position": "sine"})
    with pytest.raises(UsageError, match=r"--set position=cosine(.*\n)*.*expected: sine"):
        read_checkpoint(path, {"position": "cosine"})


def test_the_sine_embedding_follows_the_formula() -> None:
    found = sine_position((3, 5), 8)[0].permute(1, 2, 0).numpy()
    for row, column in ((0, 0), (2, 3), (1, 4)):
        angles = [column, column / 10_000, row, row / 10_000]
        wanted = [*np.sin(angles[:2]), *np.cos(angles[:2]), *np.sin(angles[2:]), *np.cos(angles[2:])]
        np.testing.assert_allclose(found[row, column], wanted, atol=1e-7)


def refused(path: Path, stored: files.Arrays) -> str:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(files.save(path / "vit.npz", stored))
    return str(caught.value)


@pytest.mark.parametrize("style", ["released", "linen"])
def test_missing_extra_and_misshaped_arrays_are_listed_as_the_file_names_them(
    tmp_path: Path, style: str
) -> None:
    stored = files.arrays()
    del stored["Transformer/encoderblock_1/LayerNorm_2/scale"]
    stored["gate/kernel"] = np.zeros((8, 8), np.float32)
    stored["Transformer/encoder_norm/bias"] = np.zeros(9, np.float32)
    text = refused(tmp_path, files.linen(stored) if style == "linen" else stored)
    number = 1 if style == "linen" else 2
    assert f"1 missing: Transformer/encoderblock_1/LayerNorm_{number}/scale (8,)" in text
    assert "1 not understood: gate/kernel (8, 8)" in text
    assert "1 of another shape: Transformer/encoder_norm/bias (9,), expected (8,)" in text


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    stored = files.arrays()
    for name in [name for name in stored if "encoderblock_1" in name][1:]:
        del stored[name]
    text = refused(tmp_path, stored)
    assert "15 missing: " in text and "; and 7 more" in text and text.count("encoderblock_1") == 8


@pytest.mark.parametrize(
    "name", ["embedding/kernel", "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel", "embedding/bias", "head/bias"]
)  # fmt: skip
def test_every_array_is_needed(tmp_path: Path, name: str) -> None:
    stored = files.arrays()
    del stored[name]
    assert refused(tmp_path, stored)


def test_a_block_left_out_is_not_renumbered_away(tmp_path: Path) -> None:
    stored = {name: array for name, array in files.arrays(layers=3).items() if "encoderblock_1" not in name}
    assert "16 missing: Transformer/encoderblock_1/" in refused(tmp_path, stored)


def test_stacked_blocks_of_different_depth_are_refused(tmp_path: Path) -> None:
    stored = files.stacked(files.arrays())
    name = "Transformer/encoderblock/LayerNorm_0/scale"
    stored[name] = np.concatenate([stored[name], stored[name][:1]])
    assert f"{name} (3, 8), expected (2, 8)" in refused(tmp_path, stored)


def test_features_without_a_head_are_refused(tmp_path: Path) -> None:
    stored = files.arrays()
    del stored["head/kernel"], stored["head/bias"]
    assert re.search(r"has no head(.*\n)*.*take the fine-tuned checkpoint", refused(tmp_path, stored))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stem/kernel", "MixerBlock_0/LayerNorm_0/scale", "head/kernel"], "an MLP-Mixer checkpoint"),
        (["params/img/embedding/kernel", "params/txt/Encoder_0/x", "params/t"], "an image-text model"),
        (["resnet/root_block/standardized_conv2d/kernel"], r"a ResNet \(BiT\)"),
        (["opt/state/step"], "an optimizer state without the parameters"),
        (["blocks.0.attn.qkv.weight"], "a checkpoint of PyTorch saved as .npz"),
        (["x_train", "y_train"], "no checkpoint of a ViT; it has 2 arrays: x_train, y_train"),
        ([], "it has 0 arrays: none"),
    ],
)
def test_other_checkpoints_are_recognised(tmp_path: Path, names: list[str], message: str) -> None:
    stored = {name: np.zeros(1, np.float32) for name in names}
    assert re.search(message, refused(tmp_path, stored))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embedding/kernel", (4, 4, 3)),
        ("pre_logits/kernel", ()),
        ("conv_root/kernel", (32,)),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", (8, 0, 4)),
    ],
)
def test_an_array_that_cannot_show_a_size_is_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    text = refused(tmp_path, files.arrays() | {name: np.zeros(shape, np.float32)})
    assert f"'{name}' in {tmp_path / 'vit.npz'} has shape {shape}" in text and "none of them empty" in text


def test_patches_that_are_not_square_are_refused(tmp_path: Path) -> None:
    stored = files.arrays() | {"embedding/kernel": np.zeros((4, 2, 3, 8), np.float32)}
    assert "have 4×2 pixels" in refused(tmp_path, stored)


def test_a_source_says_what_it_is_and_what_decides_the_graph(tmp_path: Path) -> None:
    path = files.save(tmp_path / "tiny.npz", files.arrays())
    source = open_vit(path)
    assert source.title == "ViT of 2 layers, 8 wide, patch 4, 3 classes (tiny.npz)"
    assert open_vit(path, title="ViT-X").title.endswith("(ViT-X)")
    assert source.identity == open_vit(path).identity
    others = {
        source.identity,
        open_vit(path, Given(settings={"grid": "2x2"})).identity,
        open_vit(path, Given(spec=given_spec())).identity,
        open_vit(files.save(tmp_path / "other.npz", files.arrays(layers=1))).identity,
    }
    assert len(others) == 4
    with pytest.raises(UsageError, match=r"--set heads=2: a ViT checkpoint has no such setting"):
        open_vit(path, Given(settings={"heads": "2"}))


def given_spec(**changes: object) -> ModelSpec:
    spec = ModelSpec(
        Task.CLASSIFICATION,
        Decode.LOGITS,
        "pixels",
        {"logits": "scores"},
        Preprocessing((12, 8), mean=(0.1, 0.2, 0.3)),
        labels=("a", "b", "c"),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def test_pictures_are_stretched_to_the_trained_size_and_brought_to_minus_one_to_one(tmp_path: Path) -> None:
    network = open_vit(files.save(tmp_path / "tiny.npz", files.arrays())).build(ExportOptions())
    half = (0.5, 0.5, 0.5)
    assert network.spec.preprocessing == Preprocessing((8, 8), mean=half, std=half)
    assert network.spec.labels == ()
    assert [tuple(image.shape) for image in network.inputs.values()] == [(2, 3, 8, 8)]


def test_a_given_spec_and_a_given_size_win(tmp_path: Path) -> None:
    path = files.save(tmp_path / "tiny.npz", files.arrays())
    source = open_vit(path, Given(spec=given_spec()))
    network = source.build(ExportOptions())
    assert network.spec == given_spec() and network.outputs == ("scores",)
    assert tuple(network.inputs["pixels"].shape) == (2, 3, 12, 8)
    larger = source.build(ExportOptions(size=(16, 20)))
    assert larger.spec.preprocessing.size == (16, 20) and larger.spec.labels == ("a", "b", "c")
    assert tuple(larger.inputs["pixels"].shape) == (2, 3, 16, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessing": Preprocessing((8, 8), layout="NHWC")}, "layout NHWC"),
        ({"size_input": "sizes"}, "an input with the size of the image"),
        (
            {
                "task": Task.DETECTION,
                "decode": Decode.DETR_SOFTMAX,
                "outputs": {"logits": "a", "boxes": "b"},
            },
            "the spec says detection",
        ),
    ],
)
def test_a_spec_the_model_cannot_fulfil_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = files.save(tmp_path / "tiny.npz", files.arrays())
    with pytest.raises(SpecError, match=message):
        open_vit(path, Given(spec=given_spec(**changes)))


def test_a_size_below_one_patch_is_refused_and_dynamic_sizes_are_multiples_of_it(tmp_path: Path) -> None:
    source = open_vit(files.save(tmp_path / "tiny.npz", files.arrays()))
    with pytest.raises(UsageError, match=r"--size 3x8: .*patches of 4 pixels\n  expected: at least 4"):
        source.build(ExportOptions(size=(3, 8)))
    dynamic = frozenset({"batch", "height", "width"})
    with pytest.raises(UsageError, match=r"--size 10x8: .*\n  expected: multiples of 4"):
        source.build(ExportOptions(size=(10, 8), dynamic=dynamic))


def test_architectures_have_their_usual_names() -> None:
    base = ViTConfig((224, 224), 16, 768, 12, 12, 3072, 1000)
    assert describe(base) == "ViT-B/16"
    assert describe(replace(base, hidden=1280, layers=32, patch=14)) == "ViT-H/14"
    assert describe(replace(base, patch=1, stem=StemConfig(64, (3, 4, 9)))) == "R50+ViT-B/16"
    assert describe(replace(base, patch=1, stem=StemConfig(64, (2, 2, 2, 2)))) == "R26+ViT-B/32"
    small = replace(base, hidden=192, patch=8, stem=StemConfig(64, ()), pooling=Pooling.GAP)
    assert describe(small) == "R+ViT-Ti/16"
