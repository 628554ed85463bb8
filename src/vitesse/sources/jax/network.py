"""A JAX model with its outputs chosen: answered by JAX, and translated to ONNX by jax2onnx."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
import onnx
from jax2onnx import to_onnx

from vitesse.backends.protocol import Tensors
from vitesse.errors import ModelError
from vitesse.fusion.opset import quiet
from vitesse.sources.jax.model import JaxModel, first_line, primitives
from vitesse.sources.jax.outputs import Outputs
from vitesse.spec import ModelSpec


class JaxNetwork:
    """A model with its outputs chosen, in the layout of its spec; compiled by JAX once for each shape of images."""

    def __init__(self, model: JaxModel, spec: ModelSpec, outputs: Outputs) -> None:
        self.model, self.spec, self.outputs = model, spec, outputs
        self._params = jax.device_put(model.params, jax.devices("cpu")[0])
        self._compiled = jax.jit(self._forward)

    def answer(self, feeds: Tensors) -> Tensors:
        """What JAX itself answers, on the CPU: feeds by input name → outputs by name."""
        images = np.asarray(feeds[self.spec.image_input], np.float32)
        if self.spec.preprocessing.layout == "NCHW":
            images = images.transpose(0, 2, 3, 1)
        with _on_cpu():
            arrays = self._compiled(self._params, images)
            return {name: np.asarray(array) for name, array in zip(self.outputs.names, arrays, strict=True)}

    def translate(self, batch: str | int, opset: int) -> onnx.ModelProto:
        """Translate for images of `batch`, a number or the name of a dimension; raises ModelError."""
        spec = self.spec
        try:
            with _on_cpu(), _silent():
                model: onnx.ModelProto = to_onnx(
                    partial(self._forward, self._params),
                    [(batch, *spec.preprocessing.size, 3)],
                    opset=opset,
                    model_name=self.model.name,
                    inputs_as_nchw=[0] if spec.preprocessing.layout == "NCHW" else None,
                    input_names=[spec.image_input],
                    output_names=list(self.outputs.names),
                    normalization_mode="prefer_native",
                )
        except Exception as error:  # jax2onnx raises whatever its translators raise
            raise self._untranslatable(error) from error
        return model

    def _forward(self, params: Any, images: Any) -> tuple[Any, ...]:
        return self.outputs.of(self.model.function(params, images))

    def _untranslatable(self, error: Exception) -> ModelError:
        if isinstance(error, jax.errors.InconclusiveDimensionOperation):
            return ModelError(
                f"{self.model.name} cannot be exported with a dynamic batch: {first_line(error)}",
                expected="the same computation for every batch size",
                cause="Python code of the model asks for the batch size",
                fix="export with --dynamic none",
            )
        known = primitives(self.model.traced(2, self.spec.preprocessing.size))
        words = set(str(error).replace("'", " ").replace("`", " ").split())
        named = ", ".join(f"`{name}`" for name in sorted(known & words))
        return ModelError(
            f"jax2onnx cannot translate {self.model.name}: {first_line(error)}",
            expected="JAX primitives that jax2onnx knows",
            cause=f"the primitive {named}" if named else "a form of a function that jax2onnx does not have",
            fix="write that part with other functions, update jax2onnx, or give google-research's own checkpoint: "
            "vitesse optimize MODEL.npz",
        )


@contextmanager
def _on_cpu() -> Iterator[None]:
    """JAX on the CPU, with products in full float32: the numbers to be compared with."""
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("float32"):
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings of jax2onnx and of what it calls: they are not for the user, and the result is checked."""
    with warnings.catch_warnings(), quiet("onnx_ir"):
        warnings.simplefilter("ignore")
        yield
