"""Rows of the ledger for the levers that were asked for: each setting assessed, the strongest that passed kept."""

from __future__ import annotations

from collections.abc import Generator

from vitesse.artifact import Artifact
from vitesse.compress.lever import NotApplicable, Situation, lever
from vitesse.course import Course
from vitesse.ledger import Row, Verdict
from vitesse.recipe import LEVERS, LOWERED
from vitesse.verify.gate import StepKind

# What the levers may use of the accuracy budget where a lower precision follows them, which needs some of it.
SHARE = 0.5


def lever_rows(course: Course, graph: Artifact) -> Generator[Row, None, Artifact]:
    """Try each lever's settings, mild ones first, until one costs too much accuracy; return the graph to go on from.

    A setting that is only too slow is passed over: a stronger one may pay.
    """
    budget = course.recipe.max_drop * (SHARE if LOWERED & set(course.recipe.precisions) else 1.0)
    for name in (name for name in LEVERS if name in course.recipe.levers):
        situation = Situation(
            graph,
            course.calibration(name, graph),
            course.folder.store,
            course.model,
            course.exporting,
            course.recipe.lower,
        )
        try:
            variants = lever(name)(situation)
        except NotApplicable as reason:
            yield course.left_out(name, Verdict.REJECTED, f"nothing to move: {reason.what}")
            continue
        base = graph
        for variant in variants:
            row = course.step(variant.stage, StepKind.LEVER, base, variant.make, max_drop=budget)
            yield row
            if row.verdict is Verdict.PASS:
                graph = course.artifact(row)
            if not course.accurate(row, budget):
                break
    return graph
