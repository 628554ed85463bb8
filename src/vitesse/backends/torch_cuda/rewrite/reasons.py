"""Why nodes that look like a pattern are not rewritten, counted for the report."""

from __future__ import annotations

from collections import Counter


class LeftAlone(Exception):
    """Why a match is not rewritten; the text reaches the report."""


class Notes(Counter[str]):
    """Reasons why something was left alone, each with how often."""

    def lines(self) -> tuple[str, ...]:
        """One line a reason, in the order in which they came up."""
        return tuple(text if times == 1 else f"{text} ({times} times)" for text, times in self.items())
