"""Plans kept with their manifests, for the tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import onnx

from backends.cuda.fake_driver import H100
from backends.tensorrt.fake_api import Network
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.cuda.driver import Device
from vitesse.backends.tensorrt.manifest import keep_plan
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan, Profile, ShapeRange
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task
from vitesse.storage import sha256_of

SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "doubled"}, Preprocessing((4, 4)))
RTX_4090 = Device(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 * 2**30, (13, 0), (13, 0))


def doubling(folder: Path) -> Artifact:
    """An ONNX file that doubles its input."""
    info = onnx.helper.make_tensor_value_info
    two = onnx.helper.make_tensor("two", 1, [], [2.0])
    node = onnx.helper.make_node("Mul", ["images", "two"], ["doubled"])
    shape = ["N", 3, 4, 4]
    graph = onnx.helper.make_graph(
        [node], "g", [info("images", 1, shape)], [info("doubled", 1, shape)], [two]
    )
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)

    return Artifact(path, sha256_of(path), path.stat().st_size, SPEC, Provenance("fuse"))


def kept_plan(
    folder: Path,
    network: Network | None = None,
    *,
    module: str = "tensorrt",
    version: str = "10.13.0",
    capabilities: tuple[str, ...] = (),
    version_compatible: bool = False,
    device: Device | None = H100,
    command: str = "vitesse build run/ --target tensorrt",
) -> Artifact:
    """Keep a fake plan in `folder`, as a build would."""
    network = network or Network()
    profiles = tuple(Profile({"images": ShapeRange(*map(tuple, spans))}) for spans in network.profiles)
    built = BuiltPlan(network.to_bytes(), version, "fp16", 0.5, profiles)
    options = BuildOptions(profiles, compute_capabilities=capabilities, version_compatible=version_compatible)
    return keep_plan(
        built,
        doubling(folder),
        options,
        module=module,
        store=Store(folder / "engines"),
        command=command,
        device=device,
    )
