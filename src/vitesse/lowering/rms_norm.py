"""RMSNormalization → a mean of squares and a quotient (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from vitesse.fusion.rules import Fusion
from vitesse.lowering.layer_norm import LayerNormRule


class _RMSNorm(LayerNormRule):
    operator = "RMSNormalization"
    centred = False


LOWERING = Fusion("rms_norm", (_RMSNorm.rule(),), opset=13)
