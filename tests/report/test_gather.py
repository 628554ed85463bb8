"""The bars of the report: parts of two profiles side by side."""

from __future__ import annotations

from report.test_module_table import profile
from vitesse.report.extras import ModuleBar
from vitesse.report.gather import module_bars


def test_parts_without_time_have_no_bar_and_the_others_stand_in_their_order() -> None:
    assert module_bars(profile(), profile(0.5, lost=0.25)) == (
        ModuleBar("read the image", 2.0, 2.0),
        ModuleBar("backbone", 6.0, 3.0),
        ModuleBar("decoder", 2.0, 1.0),
        ModuleBar("not attributed", 0.0, 0.25),
        ModuleBar("outside operators", 1.0, 1.0),
    )
