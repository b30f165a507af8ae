"""Progress: a line every tenth into a file, a bar on a terminal."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from superst_monai.cli.progress import Progress, Steps, clock


def test_a_file_gets_a_line_every_tenth() -> None:
    """A thousand calls write ten lines, with the time left extrapolated and the loss where there is one."""
    out = io.StringIO()
    with Progress("work", console=Console(file=out)) as show:
        for i in range(1, 1001):
            show(i / 1000, i / 10, 1234.5678)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "work:  10 %, 10 s spent, 1:30 min left, loss 1234.6"
    assert lines[-1] == "work: 100 %, 1:40 min spent, 0 s left, loss 1234.6"


def test_odd_numbers_are_survived() -> None:
    """No share yet, a share beyond 1, and a loss that is not finite do not break the line."""
    out = io.StringIO()
    with Progress("work", console=Console(file=out)) as show:
        show(0.0, 1.0)
        show(0.25, 1.0, math.nan)
        show(1.5, 3.0)
    assert out.getvalue() == "work:  20 %, 1 s spent, 3 s left\nwork: 100 %, 3 s spent, 0 s left\n"


def test_a_terminal_gets_a_bar() -> None:
    """On a terminal the bar ends at 100 % with its text, and no plain lines are written."""
    out = io.StringIO()
    with Progress("work", console=Console(file=out, force_terminal=True, width=100)) as show:
        show(0.0, 0.0)
        show(1.0, 60.0, 5.0)
    assert "100%" in out.getvalue()
    assert "1:00 min spent, 0 s left, loss 5" in out.getvalue()
    assert "work: 100 %" not in out.getvalue()


def test_steps_follow_each_other() -> None:
    """Each name has tenths of its own; on a terminal one bar is stopped before the next is drawn."""
    out = io.StringIO()
    with Steps(Console(file=out)) as show:
        show("first", 0.5, 1.0)
        show("first", 0.5, 2.0)
        show("second", 1.0, 3.0)
    assert out.getvalue() == "first:  50 %, 1 s spent, 1 s left\nsecond: 100 %, 3 s spent, 0 s left\n"
    bars = io.StringIO()
    with Steps(Console(file=bars, force_terminal=True, width=100)) as show:
        show("first", 1.0, 1.0)
        show("second", 0.5, 1.0)
    assert bars.getvalue().count("\x1b[?25h") == 2  # the cursor comes back after each


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3:05 min"), (7800, "2:10 h")])
def test_clock(seconds: float, text: str) -> None:
    """Durations are said in the unit that fits."""
    assert clock(seconds) == text
