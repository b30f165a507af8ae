"""Progress of a long job: a bar with the time left on a terminal, a line every tenth otherwise; always on stderr."""

from __future__ import annotations

import math
import sys
from types import TracebackType
from typing import Self

import rich.progress as bars
from rich.console import Console

_TENTHS = 10


class Progress:
    """Shows how far a job is; call it with the share done, the seconds spent and, if there is one, the loss.

    Args:
        what: the job in a word or two.
        console: where to draw; stderr if not given.
    """

    def __init__(self, what: str, *, console: Console | None = None) -> None:
        """Draw nothing yet."""
        self.what = what
        self._console = console or Console(file=sys.stderr, highlight=False, markup=False)
        self._bar: bars.Progress | None = None
        self._tenth = 0

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._console.is_terminal:
            columns = (
                bars.TextColumn("{task.description}", markup=False),
                bars.BarColumn(),
                bars.TaskProgressColumn(),
                bars.TextColumn("{task.fields[left]}"),
            )
            self._bar = bars.Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=1.0, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, share: float, seconds: float, loss: float | None = None) -> None:
        """Show the share done (0 to 1), the time spent [s] and the loss."""
        share = min(max(share, 0.0), 1.0)
        left = f"{clock(seconds)} spent, {clock(seconds * (1 - share) / share) if share else '?'} left"
        said = left if loss is None or not math.isfinite(loss) else f"{left}, loss {loss:.5g}"
        tenth = int(share * _TENTHS + 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=share, left=said)
        elif tenth > self._tenth:
            self._console.print(f"{self.what}: {10 * tenth:3d} %, {said}", soft_wrap=True)
        self._tenth = max(tenth, self._tenth)


class Steps:
    """Shows the steps of a long job one after the other; call it with the step's name, share done and seconds spent.

    Args:
        console: as of `Progress`.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Draw nothing yet."""
        self._console = console
        self._step: Progress | None = None

    def __enter__(self) -> Self:
        """Wait for the first step."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        if self._step is not None:
            self._step.__exit__(kind, error, trace)

    def __call__(self, name: str, share: float, seconds: float) -> None:
        """Show how far a step is; a new name ends the step before."""
        if self._step is None or self._step.what != name:
            self.__exit__(None, None, None)
            self._step = Progress(name, console=self._console).__enter__()
        self._step(share, seconds)


def clock(seconds: float) -> str:
    """A duration as people say it: 45 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
