"""Einsum of one or two operands → Transpose, ReduceSum and one MatMul (or Mul where nothing is summed in common).

Letters fall into groups: in both operands and the result (batch), in both but not in the result (summed), in one and
the result (rows, columns), in one only (summed first). Each group becomes one axis of a MatMul.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion, LeftAlone
from vitesse.lowering.building import OperatorRule, integers, length_of, rank_of, text

# Letters of the axes that are copied, and of the last two, each merged into one for a MatMul.
_Groups = tuple[str, str, str]


@dataclass(frozen=True)
class _Plan:
    """`terms`: letters of each operand; `lengths`: of each letter, None where it is not static."""

    operands: tuple[ir.Value, ...]
    terms: tuple[str, ...]
    result: str
    lengths: Mapping[str, int | None]

    def groups(self) -> tuple[_Groups, _Groups, _Groups]:
        """Letters of (leading, rows, sum), (batch, sum, columns) and (leading, rows, columns) of a product.

        Rows need not be merged where there is no batch: all but the last lead, and MatMul runs along them.
        """
        left, right = (set(term) & {*self.result, *other} for term, other in (self.terms, self.terms[::-1]))
        batch = "".join(letter for letter in self.result if letter in left & right)
        rows = "".join(letter for letter in self.result if letter in left - right)
        columns = "".join(letter for letter in self.result if letter in right - left)
        summed = "".join(letter for letter in self.terms[0] if letter in right and letter not in self.result)
        leading, last = (batch, rows) if batch else (rows[:-1], rows[-1:])
        return (leading, last, summed), (batch, summed, columns), (leading, last, columns)


class _Einsum(OperatorRule):
    operator = "Einsum"

    def prepare(self, node: ir.Node) -> _Plan:
        operands = tuple(value for value in node.inputs if value is not None)
        if len(operands) > 2:
            raise LeftAlone(f"it has {len(operands)} operands")
        equation = text(node, "equation", "").replace(" ", "")
        terms, result = _terms(equation, operands)
        if any(len(set(term)) < len(term) for term in (*terms, result)):
            raise LeftAlone(f"{equation!r} takes a diagonal")
        plan = _Plan(operands, terms, result, _lengths(equation, terms, operands))
        if len(operands) == 2:
            _check_shapes(equation, plan)
        return plan

    def build(self, op: Any, plan: _Plan) -> Any:
        needed = [{*plan.result, *other} for other in ("".join(plan.terms[1:]), plan.terms[0])]
        operands, terms = [], []
        for value, term, kept in zip(plan.operands, plan.terms, needed, strict=False):
            gone = [axis for axis, letter in enumerate(term) if letter not in kept]
            operands.append(op.ReduceSum(value, integers(op, gone), keepdims=0) if gone else value)
            terms.append("".join(letter for letter in term if letter in kept))
        if len(operands) == 1:
            return _ordered(op, operands[0], terms[0], plan.result)
        of_left, of_right, of_product = plan.groups()
        if not of_left[2]:
            sides = zip(operands, terms, strict=True)
            return op.Mul(*(_spread(op, value, term, plan.result) for value, term in sides))
        left = _matrix(op, operands[0], terms[0], of_left, plan.lengths)
        right = _matrix(op, operands[1], terms[1], of_right, plan.lengths)
        product = op.MatMul(left, right)
        if any(len(group) != 1 for group in of_product[1:]):
            product = op.Reshape(product, integers(op, _shape(of_product, plan.lengths)))
        return _ordered(op, product, "".join(of_product), plan.result)


def _terms(equation: str, operands: Sequence[ir.Value]) -> tuple[tuple[str, ...], str]:
    """Letters of the operands and of the result; an ellipsis becomes letters that the equation does not have."""
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands):
        raise LeftAlone(f"{equation!r} does not fit {len(operands)} operands")
    free = [letter for letter in ascii_uppercase if letter not in equation]
    wide = [
        rank_of(value) - len(term.replace("...", "")) for term, value in zip(terms, operands, strict=True)
    ]
    broadcast = [count for term, count in zip(terms, wide, strict=True) if "..." in term]
    if len(set(broadcast)) > 1:
        raise LeftAlone(f"the ellipses of {equation!r} cover different numbers of axes")
    dots = "".join(free[: broadcast[0] if broadcast else 0])
    if not arrow:
        letters = sorted(inputs.replace(",", "").replace(".", ""))
        result = "..." * bool(broadcast) + "".join(one for one in letters if letters.count(one) == 1)
    return tuple(term.replace("...", dots) for term in terms), result.replace("...", dots)


def _lengths(equation: str, terms: Sequence[str], operands: Sequence[ir.Value]) -> dict[str, int | None]:
    lengths: dict[str, int | None] = {}
    for term, value in zip(terms, operands, strict=True):
        for axis, letter in enumerate(term):
            length = length_of(value, axis)
            if None not in (length, lengths.get(letter)) and length != lengths[letter]:
                raise LeftAlone(f"{equation!r} broadcasts {letter!r}")
            lengths[letter] = lengths.get(letter) or length
    return lengths


def _check_shapes(equation: str, plan: _Plan) -> None:
    """Raise LeftAlone where merged axes could not be taken apart again: two lengths that are not static."""
    of_left, of_right, of_product = plan.groups()
    if not of_left[2]:
        return
    for groups, merged in ((of_left, True), (of_right, True), (of_product, False)):
        reshaped = any(len(group) != 1 for group in groups[1:])
        if reshaped and _shape(groups, plan.lengths, merged=merged).count(-1) > 1:
            raise LeftAlone(f"{equation!r} merges axes whose lengths are not static")


def _shape(groups: _Groups, lengths: Mapping[str, int | None], *, merged: bool = False) -> list[int]:
    """Shape of a Reshape: the batch axes, which come first, are copied; merged: one axis for each later group."""
    batch, *others = groups
    shape = [0] * len(batch)
    for group in others:
        sizes = [lengths[letter] for letter in group]
        if not merged:
            shape += [-1 if size is None else size for size in sizes]
        else:
            shape.append(-1 if None in sizes else math.prod(size for size in sizes if size is not None))
    return shape


def _matrix(op: Any, value: Any, term: str, groups: _Groups, lengths: Mapping[str, int | None]) -> Any:
    """An operand as (batch …, one axis for each other group)."""
    value = _ordered(op, value, term, "".join(groups))
    if all(len(group) == 1 for group in groups[1:]):
        return value
    return op.Reshape(value, integers(op, _shape(groups, lengths, merged=True)))


def _ordered(op: Any, value: Any, term: str, wanted: str) -> Any:
    perm = [term.index(letter) for letter in wanted]
    return value if perm == sorted(perm) else op.Transpose(value, perm=perm)


def _spread(op: Any, value: Any, term: str, result: Iterable[str]) -> Any:
    """An operand with the axes of the result, of length 1 where it does not have them."""
    letters = list(result)
    value = _ordered(op, value, term, "".join(letter for letter in letters if letter in term))
    missing = [axis for axis, letter in enumerate(letters) if letter not in term]
    return op.Unsqueeze(value, integers(op, missing)) if missing else value


LOWERING = Fusion("einsum", (_Einsum.rule(),), opset=13)
