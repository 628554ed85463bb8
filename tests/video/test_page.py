"""The page's figures are those of the committed results."""

import json
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_speeds_is_that_of_the_results() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "video.json").read_text())
    page = (ROOT / "docs" / "video.md").read_text()
    assert content["command"] in page
    for result in content["results"]:
        width, height = result["size"]
        loop, both = (median(result["frames_per_s"][name]) for name in ("loop", "overlapped"))
        ratios = result["ratios"]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        row = f"| {width}×{height} | {loop:.0f} | {both:.0f} | {spread} |"
        assert row in page, row
