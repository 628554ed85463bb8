"""Text in the cells of Markdown tables."""

from __future__ import annotations


def in_cell(text: str) -> str:
    """Text that cannot end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
