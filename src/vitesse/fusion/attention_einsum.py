"""Einsum of two operands that is a matrix product in another layout → Transpose and MatMul.

JAX exports write attention as `bqhd,bkhd->bhqk` and `bhqk,bkhd->bqhd`, flax with `...` for the batch; runtimes run
Einsum by transposing at every call, and no attention pattern reaches through it.
"""

from __future__ import annotations

import string
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

_ELLIPSIS = "..."


class EinsumAsMatMul(RewriteRuleClassBase):
    """Letters in both operands and the result are batch; one letter is summed; one is left, one right."""

    def pattern(self, op: Any, left: Any, right: Any) -> Any:
        """Any Einsum of two operands."""
        return op.Einsum(left, right, _outputs=["product"])

    def check(
        self, context: Any, left: ir.Value, right: ir.Value, product: ir.Value, **_: Any
    ) -> MatchResult:
        """Say why the equation is no matrix product."""
        node = product.producer()
        assert node is not None
        equation = node.attributes["equation"].as_string().replace(" ", "")
        operands, arrow, result = equation.partition("->")
        first, _comma, second = operands.partition(",")
        fails = MatchResult()
        if not arrow:
            return fails.fail(f"Einsum {equation!r} has no explicit result")
        if _ELLIPSIS in equation:
            spelled = _spelled_out((first, second, result), left, right)
            if spelled is None:
                return fails.fail(
                    f"the ellipsis of Einsum {equation!r} does not stand for the same axes in both operands"
                )
            first, second, result = spelled
        terms = (first, second, result)
        if not all(term.isalpha() and len(set(term)) == len(term) for term in terms):
            return fails.fail(f"Einsum {equation!r} repeats letters")
        batch = [letter for letter in result if letter in first and letter in second]
        summed = [letter for letter in first if letter in second and letter not in result]
        rows = [letter for letter in first if letter not in second]
        columns = [letter for letter in second if letter not in first]
        if not (len(summed) == len(rows) == len(columns) == 1 and {*rows, *columns} <= set(result)):
            return fails.fail(f"Einsum {equation!r} is not one matrix product per batch entry")
        self._perms = (
            [first.index(letter) for letter in (*batch, *rows, *summed)],
            [second.index(letter) for letter in (*batch, *summed, *columns)],
            [[*batch, *rows, *columns].index(letter) for letter in result],
        )
        return fails

    def rewrite(self, op: Any, left: ir.Value, right: ir.Value, **_: Any) -> Any:
        """Transpose both operands to (batch, rows, columns), multiply, transpose the result."""
        for_left, for_right, for_result = self._perms
        product = op.MatMul(_transposed(op, left, for_left), _transposed(op, right, for_right))
        return _transposed(op, product, for_result)


def _spelled_out(terms: tuple[str, str, str], left: ir.Value, right: ir.Value) -> tuple[str, str, str] | None:
    """Letters in place of the ellipsis; None unless it stands for equally many axes in all three terms."""
    hidden = set()
    for term, operand in zip(terms, (left, right), strict=False):
        if term.count(_ELLIPSIS) != 1 or operand.shape is None:
            return None
        hidden.add(operand.shape.rank() - len(term.replace(_ELLIPSIS, "")))
    unused = [letter for letter in string.ascii_letters if letter not in "".join(terms)]
    count = hidden.pop()
    if hidden or not 0 <= count <= len(unused) or terms[2].count(_ELLIPSIS) != 1:
        return None
    first, second, result = (term.replace(_ELLIPSIS, "".join(unused[:count])) for term in terms)
    return first, second, result


def _transposed(op: Any, value: ir.Value, perm: list[int]) -> ir.Value:
    if perm == sorted(perm):
        return value
    transposed: ir.Value = op.Transpose(value, perm=perm)
    return transposed


def rules() -> tuple[RewriteRule, ...]:
    """The one rule."""
    return (EinsumAsMatMul.rule(),)
