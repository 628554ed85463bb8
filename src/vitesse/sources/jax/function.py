"""A JAX function or flax module → one ONNX graph through jax2onnx, held against JAX before it is given away.

jax2onnx translates flax modules by their class, and passes over what a subclass overrides: the weight-standardised
convolutions of the R+ViT hybrids become plain ones without a word. Therefore no graph leaves `JaxSource.export`
that does not answer as JAX does.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.artifact import Provenance, Store
from vitesse.errors import ModelError, NotVerified, SpecError, UsageError
from vitesse.export.check import check_export
from vitesse.metadata import serialise
from vitesse.sources.jax.factory import call_factory
from vitesse.sources.jax.model import JaxModel, fingerprint, model_of, narrow_floats
from vitesse.sources.jax.network import JaxNetwork
from vitesse.sources.jax.outputs import choose_outputs, default_spec
from vitesse.sources.source import Exported, ExportOptions, Given, Source
from vitesse.spec import ModelSpec

_BATCH = "batch"


@dataclass(frozen=True)
class JaxSource:
    """A source that is a JAX function; see `sources.source.Source`. `batch` is what a fixed batch is fixed at."""

    title: str
    identity: str
    model: JaxModel
    spec: ModelSpec
    batch: int

    def export(self, options: ExportOptions) -> Exported:
        """Translate with jax2onnx and hold the graph against JAX, at two batch sizes where the batch is dynamic.

        Raises:
            UsageError: dynamic height or width, or a size the function cannot take.
            ModelError: JAX or jax2onnx fails, the function does not compute in float32, its answer does not depend
                on the image, or the graph answers otherwise than JAX.
            BackendError: ONNX Runtime refuses the graph.
        """
        cause = "a JAX function is traced for images of one size"
        options.require_axes({_BATCH}, self.title, cause=cause)
        spec = self._spec_at(options.size)
        outputs = choose_outputs(self.model.shapes(2, _size(spec)), spec, keep_aux=options.keep_aux)
        network = JaxNetwork(self.model, spec, outputs)
        _check_float32(self.model, _size(spec))
        _check_depends_on_image(network, self.batch)
        batch = _BATCH if _BATCH in options.dynamic else self.batch
        exported = Exported(network.translate(batch, options.opset), spec, network.answer, options.dynamic)
        _check_against_jax(exported, self.title)
        return exported

    def _spec_at(self, size: tuple[int, int] | None) -> ModelSpec:
        if size is None or size == _size(self.spec):
            return self.spec
        try:
            self.model.shapes(2, size)
        except ModelError as error:
            raise UsageError(
                f"--size {size[0]}x{size[1]}: {error.what}",
                expected=f"{_size(self.spec)[0]}x{_size(self.spec)[1]}",
                cause="position embeddings are made for one size",
            ) from error
        return replace(self.spec, preprocessing=replace(self.spec.preprocessing, size=size))


def from_jax(
    fn: Any, params: Any, inputs: Any, *, spec: ModelSpec | None = None, title: str = ""
) -> JaxSource:
    """Take a JAX model in.

    Args:
        fn: `fn(params, images)` with images float32 (batch, H, W, 3); or a Linen module, `params` being its variables;
            or an NNX module, `params` being None. It returns logits, (logits, boxes), or a dict of them; what the
            spec does not name is left out.
        params: a tree of arrays; floating-point ones are taken as float32.
        inputs: an example of the images or its shape, such as ("B", 224, 224, 3): the batch may be any text or
            number, and only a number matters: it is what the batch is fixed at where it is not dynamic, else 1.
        spec: how to prepare images and read the outputs. None: a classifier, pixels from -1 to 1. The exported graph
            has the spec's layout; NCHW, the default, saves the Transpose in front of the first convolution.
        title: what it is, for people.

    Raises:
        UsageError: `fn`, `params` or `inputs` is of the wrong kind.
        SpecError: no spec for outputs that need one, or a spec that does not fit.
        ModelError: the function fails on such images.
    """
    model = model_of(fn, params)
    batch, size = _images(inputs)
    returned = model.shapes(2, size)
    spec = spec or default_spec(returned, size)
    _check_spec(spec, size, model.name)
    choose_outputs(returned, spec, keep_aux=False)
    decisive = f"{fingerprint(model, size)} {batch} {spec.to_json()}"
    identity = hashlib.sha256(decisive.encode()).hexdigest()
    return JaxSource(title or f"{model.name} (JAX)", identity, model, spec, batch)


def open_flax(text: str, given: Given) -> Source:
    """Open `PACKAGE.MODULE:FACTORY`, which **imports and runs** the user's own code.

    The module is looked for as Python does, and in the current folder. `FACTORY()` returns the arguments of `from_jax`:
    (function or flax module, params, inputs), and the spec as a fourth if there is one; `--spec` goes before it.

    Raises:
        UsageError: the text has another form, or a setting is given.
        ModelError: the module or function is missing, fails, or returns something else; and what `from_jax` raises.
    """
    given.refuse_unknown(f"flax:{text}")
    fn, params, inputs, spec = call_factory(text)
    source = from_jax(fn, params, inputs, spec=given.spec or spec)
    return replace(source, title=f"{source.model.name} (flax:{text})")


def _images(inputs: Any) -> tuple[int, tuple[int, int]]:
    """Return (batch or 1, (height, width)) of an example, of its shape, or of a list with one of either."""
    shape = getattr(inputs, "shape", inputs)
    if isinstance(shape, list | tuple) and len(shape) == 1:
        shape = getattr(shape[0], "shape", shape[0])
    given = tuple(shape) if isinstance(shape, list | tuple) else ()
    sides = given[1:3]
    if len(given) != 4 or given[3] != 3 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UsageError(
            f"inputs {given or inputs!r} of a JAX model",
            expected='images (batch, height, width, 3), such as ("B", 224, 224, 3)',
            cause="the model takes channels first, or more than the images"
            if len(given) != 4 or 3 in given
            else "",
            fix="wrap it in a function of (params, images) that takes channels last, as JAX has them",
        )
    return given[0] if isinstance(given[0], int) and given[0] > 0 else 1, (sides[0], sides[1])


def _size(spec: ModelSpec) -> tuple[int, int]:
    return spec.preprocessing.size


def _check_spec(spec: ModelSpec, size: tuple[int, int], name: str) -> None:
    if _size(spec) != size:
        raise SpecError(
            f"the spec's size is {_size(spec)[0]}×{_size(spec)[1]}, and {name} takes images of {size[0]}×{size[1]}",
            expected=f"preprocessing.size = [{size[0]}, {size[1]}] (height, width)",
            fix="correct the spec or the inputs",
        )
    if spec.preprocessing.layout not in ("NCHW", "NHWC"):
        raise SpecError(f"layout {spec.preprocessing.layout!r} in the spec", expected="NCHW or NHWC")
    if spec.size_input or spec.valid_size_input:
        raise SpecError(
            f"the spec asks for the input `{spec.size_input or spec.valid_size_input}`",
            expected=f"one image input: {name} is a function of (params, images)",
        )


def _check_float32(model: JaxModel, size: tuple[int, int]) -> None:
    found = narrow_floats(model.traced(2, size))
    if found:
        dtype, primitive = next(iter(found.items()))
        wide = dtype == "float64"
        raise ModelError(
            f"{model.name} computes in {dtype} (first in `{primitive}`)",
            expected="float32 throughout: lower precision is chosen, and proved, after the export",
            cause="jax_enable_x64 is on" if wide else f"modules are made with dtype={dtype}",
            fix='jax.config.update("jax_enable_x64", False)'
            if wide
            else "make them with dtype=jax.numpy.float32",
        )


def _check_depends_on_image(network: JaxNetwork, batch: int) -> None:
    """A head of zeros answers zero whatever stands before it, and would agree with any graph."""
    rules, generator = network.spec.preprocessing, np.random.default_rng(0)
    sides = (3, *rules.size) if rules.layout == "NCHW" else (*rules.size, 3)
    name = network.spec.image_input
    one, other = (
        network.answer({name: generator.standard_normal((batch, *sides), np.float32)}) for _ in range(2)
    )
    same = [output for output in network.spec.outputs.values() if np.array_equal(one[output], other[output])]
    if same:
        raise ModelError(
            f"{network.model.name} gives the same `{same[0]}` for different images",
            expected="an answer that depends on the image: otherwise no graph can be told from the right one",
            cause="the parameters are not trained, and its head begins with zeros",
            fix="load trained parameters",
        )


def _check_against_jax(exported: Exported, title: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        content = serialise(exported.model, exported.spec)
        artifact = Store(Path(folder)).put(content, exported.spec, Provenance("source"), suffix=".onnx")
        try:
            check_export(exported, artifact)
        except NotVerified as error:
            raise ModelError(
                f"jax2onnx mis-translates {title}: {error.what}",
                expected=error.expected,
                cause="jax2onnx translates flax modules by their class and drops what a subclass overrides, such as "
                "`param()` of a Conv with weight standardisation (R+ViT hybrids)",
                fix="give google-research's checkpoint itself: vitesse optimize MODEL.npz; or bake the kernels: put "
                "the standardised ones into the parameters and use the plain flax.linen.Conv",
            ) from error
