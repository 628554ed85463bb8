"""What the tables of gpu_runtime.py share: titles, refusals in words below a table, where figures come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cells import in_cell
from gpu.apart import without_folders

NOT_RUN = "not run"
TITLES = {"vit_b16": "ViT-B/16, 224×224", "detr_r50": "DETR-R50, 800×1333"}
PRECISIONS = {"fp32": "FP32", "fp16": "FP16"}
# As many characters of a refusal as gpu_runtime.py keeps.
REFUSAL_CUT = 300

Found = Mapping[str, Any]


class Refusals:
    """The words of refusals: numbered when they first come, printed below a table; without the machine's folders."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cell(self, words: str) -> str:
        shown = without_folders(words) + ("…" if len(words) >= REFUSAL_CUT else "")
        return f"refused {self._numbers.setdefault(in_cell(shown), len(self._numbers) + 1)}"

    def lines(self) -> list[str]:
        return [f"\nRefused {number}: {words}" for words, number in self._numbers.items()]


def origin(record: Found) -> str:
    """What was run where: the versions are those that the process had loaded."""
    environment = record["environment"]
    driver = next((f", driver {one['driver']}" for one in environment.get("gpus", [])), "")
    installed = environment["packages"].get("onnxruntime", environment["onnxruntime"])
    other = "" if installed == environment["onnxruntime"] else f" (a build of {installed} was installed, too)"
    cpu = environment["cpu"]
    return (
        f"\n`{record['command']}` on {environment['gpu']}{driver} (CUDA {environment['cuda_driver']}), ONNX Runtime "
        f"{environment['onnxruntime']}{other}, {cpu['usable_cores']} cores of {cpu['model']}; "
        f"{environment['date'][:10]}."
    )
