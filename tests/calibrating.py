"""A convolution, an attention product and a linear layer, small enough to say what flows through them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tiny_onnx import save
from vitesse.artifact import Artifact
from vitesse.precision.layers import Layer

CHANNELS, SIDE = 4, 3
TOKENS = SIDE * SIDE
CONV = Layer("conv", "Conv", "conv", "image", "conv_w", "maps", 1, None)
PRODUCT = Layer("scores", "MatMul", "attention", "tokens", "", "mixed", -1, None, factor="table")
LINEAR = Layer("linear", "MatMul", "linear", "mixed", "linear_w", "out", -1, None)
LAYERS = (CONV, PRODUCT, LINEAR)


def network(folder: Path, name: str = "network", *, scale: float = 1.0) -> Artifact:
    """image (1, 4, 3, 3) → Conv that doubles it → tokens (1, 4, 9) → a constant table (9, 2) → a linear layer."""
    nodes = [
        helper.make_node("Conv", ["image", "conv_w"], ["maps"], "conv"),
        helper.make_node("Relu", ["maps"], ["positive"], "relu"),
        helper.make_node("Reshape", ["positive", "shape"], ["tokens"], "tokens"),
        helper.make_node("MatMul", ["tokens", "table"], ["mixed"], "scores"),
        helper.make_node("MatMul", ["mixed", "linear_w"], ["out"], "linear"),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "conv_w": (2 * scale * np.eye(CHANNELS, dtype=np.float32)).reshape(CHANNELS, CHANNELS, 1, 1),
        "shape": np.array([1, CHANNELS, TOKENS]),
        "table": np.linspace(-3, 1, TOKENS * 2, dtype=np.float32).reshape(TOKENS, 2),
        "linear_w": np.ones((2, 5), np.float32),
    }
    return save(
        folder / f"{name}.onnx",
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, CHANNELS, 5])],
        constants,
    )


class Images(Sequence[dict[str, NDArray[np.float32]]]):
    """Random images; `passes` counts how often they were read, from the first image on."""

    def __init__(self, count: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.arrays = [
            random.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32) for _ in range(count)
        ]
        self.passes = 0

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        return {"image": self.arrays[at]}

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        self.passes += 1
        for array in self.arrays:
            yield {"image": array}
