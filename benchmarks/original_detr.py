"""How far is our DETR from the original? Random checkpoints, read and run by facebookresearch/detr and by ours.

    python benchmarks/original_detr.py CHECKOUT [--case NAME …]

CHECKOUT is a clone of facebookresearch/detr, used from where it lies; it needs torchvision. The original's classes make
the models and the padded batch; we read the file that torch.save writes of them. SciPy, which only the original's loss
needs, is replaced by an empty module, and its download of ImageNet weights is left out. Compared are logits and boxes
of all six decoder layers on a batch of three images of different sizes, padded to 333×517, and for some cases the same
of the last layer from the exported graph in ONNX Runtime. Writes benchmarks/results/originals/detr.json, and fails if
keys differ, if a difference is 1e-4 or more, or if a weight changed on one side only is not seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import torch

from vitesse.environment import describe
from vitesse.sources.detr import DETR
from vitesse.sources.detr_checkpoint import load_detr, open_detr
from vitesse.sources.source import ExportOptions

RESULTS = Path(__file__).parent / "results" / "originals" / "detr.json"
LIMIT = 1e-4
SIZES = ((333, 400), (250, 517), (301, 333))
CANVAS = (333, 517)
HIDDEN, HEADS, QUERIES, CLASSES = 256, 8, 100, 91


@dataclass(frozen=True)
class Case:
    """A model by the options of the original's training program; `exported`: the graph is compared, too."""

    backbone: str = "resnet50"
    dilation: bool = False
    pre_norm: bool = False
    position_embedding: str = "sine"
    exported: bool = False


CASES = {
    "R50": Case(exported=True),
    "R50 DC5": Case(dilation=True, exported=True),
    "R101": Case("resnet101"),
    "R101 DC5": Case("resnet101", dilation=True),
    "R18": Case("resnet18"),
    "R50, pre-norm": Case(pre_norm=True),
    "R50, learned positions": Case(position_embedding="learned"),
    "ResNeXt-50": Case("resnext50_32x4d"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--case", action="append", choices=list(CASES), metavar="NAME")
    options = parser.parse_args()
    names = options.case or list(CASES)
    models = originals_modules(options.checkout)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        results = {name: compared(models, CASES[name], Path(folder)) for name in names}
    worst = max(value for found in results.values() for key, value in found.items() if key.startswith("max"))
    found = {
        "command": "python benchmarks/original_detr.py CHECKOUT",
        "original": {"repository": "facebookresearch/detr", "commit": commit_of(options.checkout)},
        "batch": {"sizes": SIZES, "padded_to": CANVAS, "limit": LIMIT, "worst": worst},
        "cases": {name: {"options": asdict(CASES[name]), **results[name]} for name in names},
        "environment": environment(),
    }
    if names == list(CASES):
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if worst >= LIMIT:
        sys.exit(f"the largest difference is {worst:.2e}, {LIMIT:g} or more")


def originals_modules(checkout: Path) -> dict[str, ModuleType]:
    scipy, optimize = ModuleType("scipy"), ModuleType("scipy.optimize")
    optimize.linear_sum_assignment = None  # type: ignore[attr-defined]
    sys.modules |= {"scipy": scipy, "scipy.optimize": optimize}
    sys.path.insert(0, str(checkout))
    names = ("models.backbone", "models.detr", "models.position_encoding", "models.transformer", "util.misc")
    modules = {name: import_module(name) for name in names}
    modules["models.backbone"].is_main_process = lambda: False  # type: ignore[attr-defined]
    return modules


def original(models: dict[str, ModuleType], case: Case) -> Any:
    """Build the original's model with random weights."""
    torch.manual_seed(0)
    backbone = models["models.backbone"]
    arguments = argparse.Namespace(
        lr_backbone=1e-5, masks=False, backbone=case.backbone, dilation=case.dilation, hidden_dim=HIDDEN,
        position_embedding=case.position_embedding, nheads=HEADS, dropout=0.1, dim_feedforward=2048,
        enc_layers=6, dec_layers=6, pre_norm=case.pre_norm,
    )  # fmt: skip
    model = models["models.detr"].DETR(
        backbone.build_backbone(arguments),
        models["models.transformer"].build_transformer(arguments),
        num_classes=CLASSES,
        num_queries=QUERIES,
        aux_loss=True,
    )
    return model.eval(), arguments


def randomise_batch_norm(model: Any, batch: Any, kind: type[torch.nn.Module]) -> None:
    """Give every BatchNorm statistics near those of what it really sees, and a random scale and shift."""

    def measure(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        norm.running_mean.copy_(mean + 0.1 * variance.sqrt() * torch.randn_like(mean))
        norm.running_var.copy_(variance * (0.5 + torch.rand_like(mean)))
        norm.weight.copy_(0.5 + torch.rand_like(mean))
        norm.bias.copy_(0.2 * torch.randn_like(mean))

    hooks = [
        module.register_forward_pre_hook(measure) for module in model.modules() if isinstance(module, kind)
    ]
    model(batch)
    for hook in hooks:
        hook.remove()


def compared(models: dict[str, ModuleType], case: Case, folder: Path) -> dict[str, Any]:
    theirs, arguments = original(models, case)
    batch = models["util.misc"].nested_tensor_from_tensor_list([torch.randn(3, *size) for size in SIZES])
    assert tuple(batch.tensors.shape[2:]) == CANVAS
    randomise_batch_norm(theirs, batch, models["models.backbone"].FrozenBatchNorm2d)
    output = theirs(batch)
    layers = [*output["aux_outputs"], output]
    wanted = [torch.stack([layer[name] for layer in layers]) for name in ("pred_logits", "pred_boxes")]
    path = folder / "model.pth"
    torch.save({"model": theirs.state_dict(), "args": arguments}, path)
    ours = load_detr(path)
    if ours.state_dict().keys() != theirs.state_dict().keys():
        sys.exit(f"other keys: {sorted(ours.state_dict().keys() ^ theirs.state_dict().keys())}")
    logits, boxes = (distance(*pair) for pair in zip(everything(ours, batch.tensors), wanted, strict=True))
    result = {
        "keys": len(ours.state_dict()),
        "parameters": sum(tensor.numel() for tensor in ours.state_dict().values()),
        "range_logits": float(wanted[0].max() - wanted[0].min()),
        "max_abs_logits": max(logits),
        "max_abs_boxes": max(boxes),
        "logits_by_layer": logits,
        "boxes_by_layer": boxes,
    }
    if case.exported:
        result |= exported_distance(path, batch.tensors, [tensor[-1] for tensor in wanted])
    ours.transformer["decoder"].layers[0].linear1.weight.mul_(1.01)
    result["seen_when_changed"] = max(distance(everything(ours, batch.tensors)[0], wanted[0]))
    if result["seen_when_changed"] < LIMIT:
        sys.exit("a changed weight is not seen: the comparison compares nothing")
    print(f"{case}: logits {max(logits):.2e}, boxes {max(boxes):.2e}", flush=True)
    return result


def everything(model: DETR, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and boxes of all decoder layers, (layers, batch, queries, …)."""
    model.keep_aux = True
    logits, boxes, aux_logits, aux_boxes = model(images, torch.tensor(SIZES))
    return torch.cat([aux_logits, logits[None]]), torch.cat([aux_boxes, boxes[None]])


def distance(found: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    return [float(value) for value in (found - wanted).abs().amax((1, 2, 3))]


def exported_distance(path: Path, images: torch.Tensor, wanted: list[torch.Tensor]) -> dict[str, float]:
    """The graph with open batch, height and width, traced at another size, in ONNX Runtime without optimisations."""
    options = ExportOptions(dynamic=frozenset({"batch", "height", "width"}), size=(480, 640))
    graph = open_detr(path).export(options).model
    session_options = onnxruntime.SessionOptions()
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), session_options)
    found = session.run(["logits", "boxes"], {"images": images.numpy(), "sizes": np.array(SIZES, np.int64)})
    names = ("max_abs_logits_exported", "max_abs_boxes_exported")
    return {
        name: float(np.abs(array - tensor.numpy()).max())
        for name, array, tensor in zip(names, found, wanted, strict=True)
    }


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment() -> dict[str, Any]:
    found = describe()
    found["packages"] |= {name: metadata.version(name) for name in ("torch", "torchvision")}
    return found


if __name__ == "__main__":
    main()
