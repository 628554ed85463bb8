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

from vitesse.errors import ModelError
from vitesse.fusion.opset import raise_opset
from vitesse.scopes import MODULE_SCOPES, common_path, path_of, scopes_note

# What the matcher says when the whole pattern is there but a value inside it is also read elsewhere.
_USED_ELSEWHERE = "Matched nodes have other uses preventing replacement."
_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})


class LeftAlone(Exception):
    """Why a match is not rewritten; the text reaches the report."""


class FusionRule(RewriteRuleClassBase):
    """A rewrite rule in three steps: `pattern`, `plan` (or why not), `build`.

    `plan` receives the values bound in the pattern and returns what `build` needs; it raises LeftAlone. What
    `build` writes must not match `pattern` again: the rewriter visits new nodes, and would never end.
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
        forms = (rule.commute() if self.commute else [rule] for rule in self.rules)
        return tuple(RewriteRuleSet([_ScopedRule.of(form) for form in each]) for each in forms)


class _ScopedRule(RewriteRule):
    """A rule whose new nodes belong to the module that all nodes they replace belong to."""

    @classmethod
    def of(cls, rule: RewriteRule) -> _ScopedRule:
        """Return the same rule; its parts are shared."""
        scoped = cls.__new__(cls)
        scoped.__dict__.update(rule.__dict__)
        return scoped

    def match(self, model: ir.Model, graph_or_function: Any, node: ir.Node, **options: Any) -> Any:
        """Called by the rewriter for every node; most are another operator than the root of the pattern.

        The matcher would find that out last: it sets up a match first, and for a pattern with two outputs it lists the
        whole graph.
        """
        root = self._target_pattern.output_nodes[0]
        if not (root.op.matches(node.op_type) and root.domain.matches(node.domain)):
            return None
        return super().match(model, graph_or_function, node, **options)

    def try_rewrite(self, *args: Any, **options: Any) -> Any:
        """Called by the rewriter for every node; a scope that the rewrite itself wrote stays."""
        made = super().try_rewrite(*args, **options)
        if made is not None:
            replaced = sorted(made.match.nodes, key=lambda node: _writes(node, made.match.outputs))
            path = common_path([path_of(node.name or "", node.metadata_props) for node in replaced])
            if path is not None:
                note = scopes_note(path, replaced[-1].name or replaced[-1].op_type)
                for node in made.new_nodes:
                    node.metadata_props.setdefault(MODULE_SCOPES, note)
        return made


def _writes(node: ir.Node, values: Sequence[ir.Value]) -> bool:
    return any(output in values for output in node.outputs)


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
    """
    counts: dict[str, int] = {}
    reasons: dict[str, tuple[str, ...]] = {}
    _move_constants_right(model)
    for fusion in fusions:
        rule_sets = fusion.rule_sets()
        found = _look(model, rule_sets)
        refused = _opset_refusal(model, fusion) if found.matches else ""
        applied = 0 if refused else sum(_to_fixpoint(model, rule_set) for rule_set in rule_sets)
        if applied:
            found = _look(model, rule_sets)
        counts[fusion.name] = counts.get(fusion.name, 0) + applied
        seen = (*reasons.get(fusion.name, ()), *found.found, *filter(None, (refused,)))
        reasons[fusion.name] = tuple(dict.fromkeys(seen))
    return counts, reasons


def _move_constants_right(model: ir.Model) -> None:
    """Write c · x as x · c.

    The matcher does not go back into an alternative that matched, so a pattern with two free operands could
    bind the constant as x; with the constant always on the right it cannot.
    """
    for node in _nodes(model):
        if node.domain == "" and node.op_type in _COMMUTATIVE and len(node.inputs) == 2:
            left, right = node.inputs
            if constant(left) is not None and constant(right) is None:
                node.replace_input_with(0, right)
                node.replace_input_with(1, left)


def _opset_refusal(model: ir.Model, fusion: Fusion) -> str:
    """Raise the opset to what `fusion` needs; return why that is not possible, or nothing."""
    try:
        raise_opset(model, fusion.opset)
    except ModelError as error:
        return f"needs opset {fusion.opset}: {error.what}"
    return ""


def _to_fixpoint(model: ir.Model, rule_set: RewriteRuleSet) -> int:
    total = 0
    while applied := int(rule_set.apply_to_model(model)):
        total += applied
    return total


def _look(model: ir.Model, rule_sets: Sequence[RewriteRuleSet]) -> _Reasons:
    """Match without rewriting.

    The tracing mode of apply_to_model would build the replacement nodes and leave them registered as users
    of the values they read.
    """
    reasons = _Reasons()
    rules = [rule for rule_set in rule_sets for rule in rule_set]
    for node in _nodes(model):
        for rule in rules:
            rule.match(model, node.graph, node, check_nodes_are_removable=rule.remove_nodes, tracer=reasons)
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
    """Pattern of a commutative operator in both operand orders; not for the root of a pattern.

    Not needed where one operand is a constant: `apply` moves it to the right.
    """
    return OrValue([operator(left, right), operator(right, left)])
