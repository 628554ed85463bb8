from pathlib import Path

import numpy as np
import pytest

from shared_data import shared

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.errors import ModelError  # noqa: E402
from vitesse.sources import vit  # noqa: E402


def checkpoint(path: Path, **changes: np.ndarray | None) -> Path:
    """Write a tiny random checkpoint in the layout of the released ones; `changes` sets or drops (None) arrays."""
    random = np.random.default_rng(0)
    block = "Transformer/encoderblock_0/"
    shapes = {
        "cls": (1, 1, 8),
        "embedding/kernel": (4, 4, 3, 8),
        "embedding/bias": (8,),
        "Transformer/posembed_input/pos_embedding": (1, 5, 8),
        **{f"{block}LayerNorm_{n}/{leaf}": (8,) for n in (0, 2) for leaf in ("scale", "bias")},
        **{f"{block}MultiHeadDotProductAttention_1/{p}/kernel": (8, 2, 4) for p in ("query", "key", "value")},
        **{f"{block}MultiHeadDotProductAttention_1/{p}/bias": (2, 4) for p in ("query", "key", "value")},
        f"{block}MultiHeadDotProductAttention_1/out/kernel": (2, 4, 8),
        f"{block}MultiHeadDotProductAttention_1/out/bias": (8,),
        f"{block}MlpBlock_3/Dense_0/kernel": (8, 16),
        f"{block}MlpBlock_3/Dense_0/bias": (16,),
        f"{block}MlpBlock_3/Dense_1/kernel": (16, 8),
        f"{block}MlpBlock_3/Dense_1/bias": (8,),
        "Transformer/encoder_norm/scale": (8,),
        "Transformer/encoder_norm/bias": (8,),
        "head/kernel": (8, 3),
        "head/bias": (3,),
    }
    arrays: dict[str, np.ndarray | None] = {
        name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    return path


def numpy_forward(path: Path, image: np.ndarray) -> np.ndarray:
    """The forward pass of the paper in float64 for one block, straight from the arrays."""
    with np.load(path, allow_pickle=False) as stored:
        a = {name: stored[name].astype(np.float64) for name in stored.files}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * a[f"{name}/scale"]
            + a[f"{name}/bias"]
        )

    patches = image.reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, 4, 4, 3)
    x = np.einsum("nijc,ijcd->nd", patches, a["embedding/kernel"]) + a["embedding/bias"]
    x = np.concatenate([a["cls"][0], x]) + a["Transformer/posembed_input/pos_embedding"][0]
    block = "Transformer/encoderblock_0/"
    y, mha = norm(x, f"{block}LayerNorm_0"), f"{block}MultiHeadDotProductAttention_1/"
    q, k, v = (
        np.einsum("td,dhe->hte", y, a[f"{mha}{p}/kernel"]) + a[f"{mha}{p}/bias"][:, None]
        for p in ("query", "key", "value")
    )
    scores = np.exp(q @ k.transpose(0, 2, 1) / 2.0)
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v
    x = x + np.einsum("hte,hed->td", mixed, a[f"{mha}out/kernel"]) + a[f"{mha}out/bias"]
    y = (
        norm(x, f"{block}LayerNorm_2") @ a[f"{block}MlpBlock_3/Dense_0/kernel"]
        + a[f"{block}MlpBlock_3/Dense_0/bias"]
    )
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    x = x + y @ a[f"{block}MlpBlock_3/Dense_1/kernel"] + a[f"{block}MlpBlock_3/Dense_1/bias"]
    return np.asarray(norm(x, "Transformer/encoder_norm")[0] @ a["head/kernel"] + a["head/bias"])


def test_a_checkpoint_gives_what_the_formulas_of_the_paper_give_in_float64(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "vit.npz")
    image = np.random.default_rng(1).standard_normal((8, 8, 3))
    model = vit.load_npz(path)
    with torch.no_grad():
        found = model(torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)))[0].numpy()
    np.testing.assert_allclose(found, numpy_forward(path, image), atol=2e-5)


def test_the_trained_checkpoint_has_the_sizes_its_readme_states() -> None:
    model = vit.load_npz(shared("vit_fashion") / "vit_fashion.npz")
    assert model.config == vit.ViTConfig(56, 8, 128, 6, 4, 512, 10)
    assert 1.215e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.225e6


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no array 'embedding/kernel'"):
        vit.load_npz(checkpoint(tmp_path / "vit.npz", **{"embedding/kernel": None}))


def test_an_array_of_another_variant_is_listed_and_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not understood .*pre_logits\.weight"):
        vit.load_npz(checkpoint(tmp_path / "vit.npz", **{"pre_logits/kernel": np.zeros((8, 8), np.float32)}))


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", cls=np.array([print], dtype=object))
    with pytest.raises(ModelError, match="needs pickle, which is refused"):
        vit.load_npz(tmp_path / "evil.npz")


def test_a_truncated_download_is_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "vit.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match="the download was cut off"):
        vit.load_npz(path)
