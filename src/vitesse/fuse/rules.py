"""The machinery shared by all fusions: apply rules, count, and collect why near-matches were left alone.

A fusion is a pattern, a check that says why not, and a rewrite, written as rules of onnxscript's rewriter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator
from onnxscript.rewriter import MatchResult, MatchStatus, RewriteRule, RewriteRuleSet
from onnxscript.rewriter.pattern import OrValue, RewriteRuleClassBase

from vitesse.fuse.opset import opset_of, raise_opset

# What the matcher says when the whole pattern is there but a value inside it is also read elsewhere.
_USED_ELSEWHERE = "Matched nodes have other uses preventing replacement."
# A rewrite can uncover the next match; more rounds than this mean a rule that matches its own result.
_MOST_ROUNDS = 20


class LeftAlone(Exception):
    """Why a match is not rewritten; the text reaches the report."""


class FusionRule(RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript's stubs are skipped
    """A rewrite rule in three steps: `pattern`, `plan` (or why not), `build`.

    `plan` receives the values bound in the pattern and returns what `build` needs; it raises LeftAlone.
    """

    def plan(self, *unused: Any, **values: Any) -> Any:
        """Return what to build; raises LeftAlone with the reason why not."""
        raise NotImplementedError

    def build(self, op: Any, plan: Any) -> Any:
        """Return the value that replaces the root of the pattern."""
        raise NotImplementedError

    def check(self, context: Any, **values: Any) -> MatchResult:
        """Called by the rewriter after the pattern matched."""
        result = MatchResult()
        try:
            self.plan(**values)
        except LeftAlone as reason:
            result.fail(str(reason))
        return result

    def rewrite(self, op: Any, **values: Any) -> Any:
        """Called by the rewriter after the check passed."""
        return self.build(op, self.plan(**values))


@dataclass(frozen=True)
class Fusion:
    """One fusion.

    Args:
        name: key of its count in the ledger, e.g. `layer_norm`.
        rules: tried in this order, each over the whole model until nothing changes; longest pattern first.
        opset: lowest version of the default domain that has the operators the rewrite emits. An older model
            is raised to it, but only when a rule matches.
        commute: also match with the operands of Add, Mul, Max, … swapped. A pattern with k such nodes becomes
            2**k patterns, so large ones use `either` where the order really varies.
    """

    name: str
    rules: tuple[RewriteRule, ...]
    opset: int = 1
    commute: bool = False

    def rule_sets(self) -> tuple[RewriteRuleSet, ...]:
        """One set per rule, holding its commuted forms."""
        return tuple(RewriteRuleSet([rule], commute=self.commute) for rule in self.rules)


@dataclass
class _Reasons:
    """A tracer that keeps the reason of every near-match, where onnxscript's keeps the best match only."""

    found: dict[str, None] = field(default_factory=dict)
    matches: int = 0

    def log(
        self, rule: RewriteRule, container: Any, node: ir.Node, match_result: Any, status: MatchStatus
    ) -> None:
        """Called by the matcher for every attempt."""
        reason = match_result.reason
        if status == MatchStatus.SUCCESS:
            self.matches += 1
        elif status == MatchStatus.CONDITION_FAILED and reason:
            self.found[reason] = None
        elif status == MatchStatus.NO_MATCH and reason == _USED_ELSEWHERE:
            self.found["an intermediate value is used elsewhere"] = None


def apply(model: ir.Model, fusions: Sequence[Fusion]) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Apply `fusions` in order, in place.

    Returns:
        (fusion name → how often it was applied, also 0; fusion name → distinct reasons why what looked like
        the pattern was left alone).

    Raises:
        ModelError: the opset a fusion needs cannot be reached.
        RuntimeError: a rule matches its own result, which is a defect of the rule.
    """
    counts: dict[str, int] = {}
    reasons: dict[str, tuple[str, ...]] = {}
    for fusion in fusions:
        rule_sets = fusion.rule_sets()
        if fusion.opset > opset_of(model) and _look(model, rule_sets).matches:
            raise_opset(model, fusion.opset)
        if fusion.opset <= opset_of(model):
            applied = sum(_to_fixpoint(model, rule_set, fusion.name) for rule_set in rule_sets)
        else:
            applied = 0
        counts[fusion.name] = counts.get(fusion.name, 0) + applied
        seen = dict.fromkeys((*reasons.get(fusion.name, ()), *_look(model, rule_sets).found))
        reasons[fusion.name] = tuple(seen)
    return counts, reasons


def _to_fixpoint(model: ir.Model, rule_set: RewriteRuleSet, name: str) -> int:
    total = 0
    for _ in range(_MOST_ROUNDS):
        applied = int(rule_set.apply_to_model(model))
        if not applied:
            return total
        total += applied
    raise RuntimeError(f"fusion {name} still matches after {_MOST_ROUNDS} rounds: it matches its own result")


def _look(model: ir.Model, rule_sets: Sequence[RewriteRuleSet]) -> _Reasons:
    """Match without rewriting.

    The tracing mode of apply_to_model would build the replacement nodes and leave them registered as users
    of the values they read.
    """
    reasons = _Reasons()
    rules = [rule for rule_set in rule_sets for rule in rule_set]
    for node in _nodes(model):
        for rule in rules:
            rule.match(model, node.graph, node, tracer=reasons)
    return reasons


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from RecursiveGraphIterator(function)


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array a value always has, or None.

    An initialiser that is also a graph input is a default, not a constant: the caller may feed another value.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number a constant with a single element holds, or None."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def either(operator: Any, left: Any, right: Any) -> Any:
    """Pattern of a commutative operator in both operand orders; not for the root of a pattern."""
    return OrValue([operator(left, right), operator(right, left)])
