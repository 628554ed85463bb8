"""Compile the chains of DETR-R50 at 800 × 1333 for compute capability 9.0 in all configurations; facts as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

# Run as a program: what stands beside it is found by its own name.
from compiled_for_sm90 import H100, Launch, Recorder, facts

from vitesse.backends.torch_cuda.kernels import conv_chain

Case = tuple[tuple[Any, ...], dict[str, Any]]


def chain(
    channels: int, filters: int, behind: int, height: int, width: int, others: int = 0, stride: int = 1
) -> Case:
    """A block's end with a residual, or with a shortcut from `others` channels, and what the next block begins with."""
    x = torch.empty(1, channels, height, width, dtype=torch.float16)
    weight = x.new_empty(filters, channels + others, 1, 1)
    residual = None if others else x.new_empty(1, filters, height, width)
    other = x.new_empty(1, others, height * stride, width * stride) if others else None
    following = x.new_empty(behind, filters, 1, 1)
    tensors = (x, weight, torch.ones(filters), following, torch.ones(behind), residual, other)
    activations = {"activation": "relu", "next_activation": "relu"}
    return tensors, {"strides": (stride, stride), "out_dtype": "float16", **activations}


CASES = {
    "first stage": chain(64, 256, 64, 200, 334),
    "first block": chain(64, 256, 64, 200, 334, others=64),
    "second stage": chain(128, 512, 128, 100, 167),
    "block with a stride": chain(128, 512, 128, 100, 167, others=256, stride=2),
    "third stage": chain(256, 1024, 256, 50, 84),
    "projection behind the backbone": chain(512, 2048, 256, 25, 42),
    # The launcher makes constants of what is 1.
    "one column": chain(64, 128, 32, 40, 1, others=64, stride=2),
}


def launches(tensors: tuple[Any, ...], attributes: dict[str, Any]) -> list[tuple[str, Launch]]:
    """What every tactic would launch."""
    found = []
    for tactic in conv_chain.KERNEL.tactics(tensors, attributes, H100):
        conv_chain.KERNEL.prepare(tensors, attributes, tactic)(*tensors)
        found.append((tactic.text(), RECORDED.pop()))
    return found


RECORDED: list[Launch] = []
conv_chain.chain = Recorder(conv_chain.chain, RECORDED)

if __name__ == "__main__":
    made = {f"{case}: {text}": facts(one) for case, step in CASES.items() for text, one in launches(*step)}
    json.dump(made, sys.stdout, indent=1)
