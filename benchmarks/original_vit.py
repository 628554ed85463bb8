"""How far is our ViT from the original? Random checkpoints, read and run by the original's Flax code and by ours.

    python benchmarks/original_vit.py CHECKOUT [--case NAME …]

CHECKOUT is a clone of google-research/vision_transformer, used from where it lies. The original's own functions make
the sizes (configs/models.py), read the file (checkpoint.load, load_pretrained) and compute the logits (models_vit.py);
what they import beside JAX and is not needed here (TensorFlow's file functions, pandas, ml_collections) is replaced by
a few lines. Writes benchmarks/results/originals/vit.json, and fails if a difference is 1e-4 or more, or if a weight
that was changed on one side only is not seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util

from vitesse.environment import describe
from vitesse.sources.vit_checkpoint import load_vit

RESULTS = Path(__file__).parent / "results" / "originals" / "vit.json"
LIMIT = 1e-4
BATCH = 2
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model of the original by its name there, and how its checkpoint is written and used.

    `layers` and `units` shorten it; `size` is what it was trained at, `resized` what it is used at.
    """

    model: str
    size: int = 224
    resized: int | None = None
    layers: int | None = None
    units: tuple[int, ...] | None = None
    classes: int = 1000
    representation: bool = False
    naming: str = "released"


CASES = {
    "Ti/16": Case("ViT-Ti_16"),
    "S/16": Case("ViT-S_16"),
    "S/32, Linen names": Case("ViT-S_32", naming="linen"),
    "B/16": Case("ViT-B_16"),
    "B/16, Linen names": Case("ViT-B_16", naming="linen"),
    "B/16, pre_logits, 21843 classes": Case("ViT-B_16", representation=True, classes=21843),
    "B/16, gap": Case("ViT-B_16-gap-norep"),
    "B/8, 3 layers": Case("ViT-B_8", layers=3),
    "B/32, 384 pixels": Case("ViT-B_32", size=384),
    "L/16, 6 layers": Case("ViT-L_16", layers=6),
    "H/14, 3 layers, pre_logits": Case("ViT-H_14", layers=3, representation=True),
    "R+Ti/16": Case("R+ViT-Ti_16"),
    "R26+S/32": Case("R26+ViT-S_32"),
    "R26+B/32, 3 layers, Linen names": Case("R26+ViT-B_32", layers=3, naming="linen"),
    "R50+B/16, 2 units a stage, 4 layers": Case("R50+ViT-B_16", layers=4, units=(2, 2, 2)),
    "R50+L/32, 2 layers": Case("R50+ViT-L_32", layers=2),
    "S/16, from 224 to 384 pixels": Case("ViT-S_16", resized=384),
    "Ti/16, from 384 to 208 pixels": Case("ViT-Ti_16", size=384, resized=208),
    "S/16 gap, from 224 to 333 pixels": Case("ViT-S_16-gap-norep", resized=333),
    "R26+S/32, from 224 to 333 pixels": Case("R26+ViT-S_32", resized=333),
    "R+Ti/16, from 384 to 250 pixels": Case("R+ViT-Ti_16", size=384, resized=250),
}  # fmt: skip


class Config:
    """As much of ml_collections.ConfigDict as the original's configurations use."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.__dict__.update(values or {})

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = Config(value) if isinstance(value, dict) else value

    def keys(self) -> list[str]:
        return list(self.__dict__)

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.__dict__.get(key, default)

    def lock(self) -> Config:
        return self


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--case", action="append", choices=CASES, metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    original = Original(options.checkout)
    kept = json.loads(RESULTS.read_text())["cases"] if options.case and RESULTS.is_file() else {}
    for name in options.case or CASES:
        kept[name] = measure(original, CASES[name])
        print(f"{name:40s} {kept[name]}", flush=True)
    seen = control(original)
    print(f"{'one weight 1 % larger on one side':40s} {seen:.2e}")
    write(options.checkout, kept, seen)
    return int(any(case["max_abs"] >= LIMIT for case in kept.values()) or seen < LIMIT)


class Original:
    """The original's modules, imported from a checkout."""

    def __init__(self, checkout: Path) -> None:
        import_module("flax.training.checkpoints")  # it would look into TensorFlow, were that seemingly there
        sys.path.insert(0, str(checkout))
        replaced = {
            "pandas": ModuleType("pandas"),
            "tensorflow": ModuleType("tensorflow"),
            "tensorflow.io": module("tensorflow.io", gfile=module("gfile", GFile=open)),
            "ml_collections": module("ml_collections", ConfigDict=Config),
        }
        sys.modules.update(replaced)
        self.checkpoint = import_module("vit_jax.checkpoint")
        self.models = import_module("vit_jax.models_vit")
        self.configs = import_module("vit_jax.configs.models").MODEL_CONFIGS
        for name in replaced:
            del sys.modules[name]

    def model(self, case: Case) -> tuple[Any, Config]:
        config = Config(dict(self.configs[case.model].__dict__))
        if case.layers:
            config.transformer = Config({**config.transformer.__dict__, "num_layers": case.layers})
        if case.units:
            config.resnet = Config({**config.resnet.__dict__, "num_layers": case.units})
        config.representation_size = config.hidden_size if case.representation else None
        return self.models.VisionTransformer(num_classes=case.classes, **config), config

    def logits(self, case: Case, path: Path, images: np.ndarray) -> np.ndarray:
        """Read the file and answer `images` (batch, height, width, 3) with the original's code alone."""
        model, config = self.model(case)
        params = self.checkpoint.load(str(path))
        if case.resized:
            new = random_params(shapes(model, case.resized), seed=1)
            tree = traverse_util.unflatten_dict(new, sep="/")
            tree["head"] = params["head"]  # which load_pretrained takes from there
            params = self.checkpoint.load_pretrained(
                pretrained_path=str(path), init_params=tree, model_config=config
            )
        apply: Callable[..., Any] = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))
        return np.asarray(apply(params, images))


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(members)
    return made


def measure(original: Original, case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        path = Path(folder) / "checkpoint.npz"
        stored = random_params(shapes(original.model(case)[0], case.size), seed=0)
        np.savez(path, **dict(released(stored) if case.naming == "released" else stored.items()))
        side = case.resized or case.size
        images = np.random.default_rng(2).standard_normal((BATCH, side, side, 3), np.float32)
        wanted = original.logits(case, path, images)
        found = ours(path, images)
    return {
        "input": list(images.shape),
        "parameters": sum(array.size for array in stored.values()),
        "max_abs": float(np.abs(wanted - found).max()),
        "logits_std": round(float(wanted.std()), 4),
    }


def control(original: Original) -> float:
    """Return the distance when one weight of the file is 1 % larger for us than for the original."""
    case = CASES["Ti/16"]
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        path = Path(folder) / "checkpoint.npz"
        stored = dict(released(random_params(shapes(original.model(case)[0], case.size), seed=0)))
        images = np.random.default_rng(2).standard_normal((BATCH, case.size, case.size, 3), np.float32)
        np.savez(path, **stored)
        wanted = original.logits(case, path, images)
        stored["Transformer/encoderblock_5/MlpBlock_3/Dense_0/kernel"] *= 1.01
        np.savez(path, **stored)
        return float(np.abs(wanted - ours(path, images)).max())


def ours(path: Path, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        model = load_vit(path, (images.shape[1], images.shape[2]))
        answer: np.ndarray = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return answer


def shapes(model: Any, side: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a Flax model for images of `side` pixels, by name."""
    example = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    made = jax.eval_shape(lambda x: model.init(jax.random.PRNGKey(0), x, train=False), example)
    flat = traverse_util.flatten_dict(made["params"], sep="/")
    return {name: value.shape for name, value in flat.items()}


def random_params(wanted: Mapping[str, tuple[int, ...]], seed: int) -> Arrays:
    """Draw every parameter, also those that training starts at 0 or 1, at sizes that keep activations near 1."""
    random = np.random.default_rng(seed)
    drawn = {}
    for name, shape in wanted.items():
        values = random.standard_normal(shape, np.float32)
        if name.endswith("kernel"):
            values *= (shape[-1] / np.prod(shape)) ** 0.5
        elif name.endswith("scale"):
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        drawn[name] = values.astype(np.float32)
    return drawn


def released(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and shape arrays as in the released files: numbered before Linen, GroupNorm as (1, 1, 1, C)."""
    for name, array in arrays.items():
        for linen, before in (
            ("LayerNorm_1", "LayerNorm_2"),
            ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
            ("MlpBlock_0", "MlpBlock_3"),
        ):
            name = name.replace(f"/{linen}/", f"/{before}/")
        is_group_norm = any(part.startswith("gn") for part in name.split("/")[:-1])
        yield name, array.reshape(1, 1, 1, -1) if is_group_norm else array


def write(checkout: Path, cases: Mapping[str, Any], seen: float) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    versions = {name: metadata.version(name) for name in ("torch", "jax", "flax", "scipy")}
    result = {
        "original": {"repository": "google-research/vision_transformer", "commit": commit},
        "command": "python benchmarks/original_vit.py CHECKOUT",
        "limit": LIMIT,
        "cases": cases,
        "control_max_abs": seen,
        "versions": versions,
        "environment": describe(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
