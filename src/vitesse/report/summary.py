"""What a run ended with, in plain words: what to deploy, how much faster, at what cost.

Reads two free-form mappings of the ledger:

* `final`: the chosen artifact against the original as people run it (runtime's default options), interleaved:
  `gain`, `gain_spread` [low, high], `baseline_p50_ms`, `chosen_p50_ms`. Without it the row's gain counts.
* `latency_budget`: `budget_ms`, and `p50_ms`, `met` (None when it could not be told), `reason` (a remark or why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vitesse.ledger import Ledger, Row, Verdict
from vitesse.report.figures import NO_REASON, decimal, metric_name, signed, times

# How a verdict looks on a terminal, as a rich style.
VERDICT_STYLES: Mapping[str, str] = {
    Verdict.PASS: "green",
    Verdict.REJECTED: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.UNKNOWN: "magenta",
}


class Ending(StrEnum):
    """How a run ended."""

    FASTER = "faster"  # a verified artifact was chosen
    KEPT = "kept"  # the original stays: nothing was faster and right
    UNVERIFIED = "unverified"  # chosen, but its verdict is not a pass
    BROKEN = "broken"  # a stage broke the model and nothing was chosen
    UNDECIDED = "undecided"  # interrupted


@dataclass(frozen=True)
class Speed:
    """Chosen against the original: `gain` = before_ms / after_ms; milliseconds are p50."""

    gain: float
    spread: tuple[float, float] | None
    before_ms: float | None
    after_ms: float | None

    def is_noise(self) -> bool:
        """Return whether the spread reaches across 1, so that no difference was shown."""
        return self.spread is not None and self.spread[0] <= 1 <= self.spread[1]


@dataclass(frozen=True)
class Conclusion:
    """The end of a run; every text is plain, unescaped, and a sentence of its own.

    `speed_words` is empty for an original that was not verified: nothing was raced against it.
    `explained` is the row whose reason the words give in full, so that who shows both need not repeat it.
    """

    ending: Ending
    title: str
    speed: Speed | None
    speed_words: str
    cost_words: str
    cost_allowed: bool | None
    budget_words: str
    budget_met: bool | None
    deploy: str
    explained: int | None

    def sentence(self) -> str:
        """Return the whole conclusion as one paragraph."""
        parts = (self.deploy, self.speed_words, self.cost_words, self.budget_words)
        return " ".join(text for text in parts if text)

    def lead(self) -> str:
        """Return the sentence under the title; a success leaves the figures to the facts beside it."""
        return self.speed_words if self.ending is Ending.FASTER else self.sentence()


def conclude(ledger: Ledger) -> Conclusion:
    """Return what the run ended with."""
    ending = _ending(ledger)
    explained = _explained(ledger, ending)
    if ledger.chosen is None:
        stopped = _stopped(ledger, explained)
        return Conclusion(
            ending, _title(ledger, ending, None, explained), None, "", "", None, "", None, stopped, explained
        )
    row = ledger.rows[ledger.chosen]
    speed = _speed(ledger, row)
    cost, allowed = _cost(ledger, row)
    budget, met = _budget(ledger.latency_budget)
    return Conclusion(
        ending,
        _title(ledger, ending, speed, explained),
        speed,
        _kept_words(ledger) if ending is Ending.KEPT else _speed_words(speed, row, raced=ledger.chosen != 0),
        cost,
        allowed,
        budget,
        met,
        _deploy(ledger, row, ending),
        explained,
    )


def _ending(ledger: Ledger) -> Ending:
    if ledger.chosen is None:
        broken = any(row.verdict is Verdict.FAIL for row in ledger.rows)
        return Ending.BROKEN if broken else Ending.UNDECIDED
    if ledger.rows[ledger.chosen].verdict is not Verdict.PASS:
        return Ending.UNVERIFIED
    return Ending.KEPT if ledger.chosen == 0 else Ending.FASTER


def _explained(ledger: Ledger, ending: Ending) -> int | None:
    if ending is Ending.BROKEN:
        return next(index for index, row in enumerate(ledger.rows) if row.verdict is Verdict.FAIL)
    return ledger.chosen if ending is Ending.UNVERIFIED else None


def _title(ledger: Ledger, ending: Ending, speed: Speed | None, explained: int | None) -> str:
    if ending is Ending.FASTER:
        if speed is None:
            return "Optimised; the speed was not measured"
        return (
            "No measurable change in speed"
            if speed.is_noise()
            else f"{times(speed.gain)} as fast, still right"
        )
    if ending is Ending.BROKEN and explained is not None:
        return f"Stopped: {ledger.rows[explained].stage} broke the model"
    return {
        Ending.KEPT: "The original stays",
        Ending.UNVERIFIED: "Not verified: don't deploy this yet",
        Ending.UNDECIDED: "Unfinished: nothing was chosen yet",
    }[ending]


def _stopped(ledger: Ledger, broken: int | None) -> str:
    if broken is not None:
        row = ledger.rows[broken]
        return f"Nothing was chosen. {row.stage} broke the model: {_closed(row.reason)}"
    return "Nothing was chosen yet: repeat the command, it goes on from the finished steps."


def _speed(ledger: Ledger, row: Row) -> Speed | None:
    final = ledger.final or {}
    if final.get("gain") is not None:
        spread = final.get("gain_spread")
        return Speed(
            float(final["gain"]),
            None if spread is None else (float(spread[0]), float(spread[1])),
            final.get("baseline_p50_ms"),
            final.get("chosen_p50_ms"),
        )
    if row.gain is None:
        return None
    before, after = ledger.rows[0].latency_ms, row.latency_ms
    return Speed(
        row.gain,
        row.gain_spread,
        None if before is None else before.p50,
        None if after is None else after.p50,
    )


def _kept_words(ledger: Ledger) -> str:
    """Why the original stays; steps that were faster before may not be so when all meet in one run."""
    gains = (ledger.final or {}).get("gains") or {}
    if not gains:
        return "No step was faster inside the accuracy budget."
    met = ", ".join(f"{stage} {times(gain)}" for stage, gain in gains.items())
    return f"When those that passed met the original once more, none was faster beyond noise: {met}."


def _speed_words(speed: Speed | None, row: Row, *, raced: bool) -> str:
    """Its speed against the original's; nothing where it is the original."""
    if not raced:
        return ""
    if speed is None:
        return f"Its speed was not measured: {_closed(row.unmeasured.get('gain', NO_REASON))}"
    figures = []
    if speed.after_ms is not None and speed.before_ms is not None:
        figures.append(f"p50 {decimal(speed.after_ms)} ms instead of {decimal(speed.before_ms)} ms")
    if speed.spread is not None:
        figures.append(f"spread {speed.spread[0]:.2f}–{speed.spread[1]:.2f}")
    detail = f" ({', '.join(figures)})" if figures else ""
    if speed.is_noise():
        return f"Its speed cannot be told from that of the original with default options{detail}."
    return f"It runs {times(speed.gain)} as fast as the original with default options{detail}."


def _cost(ledger: Ledger, row: Row) -> tuple[str, bool | None]:
    accuracy = row.accuracy
    if accuracy is None:
        why = row.unmeasured.get("accuracy", NO_REASON)
        # Without accuracy nothing passes: the reason of the verdict stands before this, and may be the same.
        return f"Its accuracy was not measured{_closed('' if why in row.reason else f': {why}')}", None
    name = {"agreement": "agreement with the original"}.get(accuracy.metric, metric_name(ledger))
    drop = accuracy.drop
    figure = f"Its {name} is {accuracy.value:.4f} on {accuracy.images:,} images"
    if row is ledger.rows[0]:
        return f"{figure}.", None
    if drop is None:
        return f"{figure}; the drop was not measured: {_closed(row.unmeasured.get('drop', NO_REASON))}", None
    allowed = drop <= ledger.max_drop
    points = signed(abs(drop))
    if points == "0.00":
        return f"{figure}: nothing lost ({ledger.max_drop:.2f} points allowed).", allowed
    side = "above" if drop < 0 else "below"
    limit = f"{ledger.max_drop:.2f} allowed" if allowed else f"more than the {ledger.max_drop:.2f} allowed"
    return f"{figure}, {points} points {side} the original ({limit}).", allowed


def _budget(budget: Mapping[str, Any] | None) -> tuple[str, bool | None]:
    if budget is None:
        return "", None
    limit, met, p50 = f"{float(budget['budget_ms']):g} ms", budget.get("met"), budget.get("p50_ms")
    if met is None:
        reason = _closed(str(budget.get("reason") or NO_REASON))
        return f"Whether it meets the latency budget of {limit} is unknown: {reason}", None
    against = "" if p50 is None else f" (p50 {decimal(float(p50))} ms)"
    remark = f"; {budget['reason']}" if budget.get("reason") else ""
    return _closed(f"The latency budget of {limit} is {'met' if met else 'not met'}{against}{remark}"), bool(
        met
    )


def _deploy(ledger: Ledger, row: Row, ending: Ending) -> str:
    where = row.artifact.path if row.artifact is not None else ledger.source
    if ending is Ending.KEPT:
        return f"Deploy the original, {where}."
    if ending is Ending.UNVERIFIED:
        return f"{row.stage} was chosen with the verdict {row.verdict.value}: {_closed(row.reason)}"
    return f"Deploy {where} (step {ledger.rows.index(row) + 1}, {row.stage})."


def _closed(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
