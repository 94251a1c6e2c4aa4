"""How far a long step is: a bar in a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from solon.artifact import Progress
from solon.cli.text import clean
from solon.report.read import duration

LINE_EVERY_S = 10.0
"""Between two plain lines of one step, at least."""
Clock = Callable[[], float]


class Pace:
    """How far a step is, how fast it goes, and how long it will take at the mean speed so far."""

    def __init__(self, *, total: int, done: int, clock: Clock = time.monotonic) -> None:
        self.total, self.done = total, done
        self._before, self._clock, self._began_s = done, clock, clock()

    @property
    def seconds(self) -> float:
        """Since the step began (again)."""
        return self._clock() - self._began_s

    def under_way(self) -> str:
        """ "120/400, 6.5/s, 43 s left"; before the first unit is done, only how many there are."""
        new, seconds = self.done - self._before, self.seconds
        if new <= 0 or seconds <= 0:
            return f"{self.done}/{self.total}"
        rate = new / seconds
        left = duration(max(0, self.total - self.done) / rate)
        return f"{self.done}/{self.total}, {_rate(rate)}, {left} left"

    def over(self) -> str:
        """ "400/400 in 1 min 2 s, 6.5/s"; less where it was stopped before the end."""
        new, seconds = self.done - self._before, self.seconds
        if new <= 0 or seconds <= 0:
            return f"{self.done}/{self.total}"
        return f"{self.done}/{self.total} in {duration(seconds)}, {_rate(new / seconds)}"


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


class Lines:
    """Progress as plain lines: one when a step begins, one when it ends, and at most one every LINE_EVERY_S between."""

    def __init__(self, write: Callable[[str], None], *, clock: Clock = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._what, self._pace, self._last_s = "", None, 0.0

    _pace: Pace | None

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Say what begins."""
        self.end()
        self._what, self._pace = clean(what), Pace(total=total, done=done, clock=self._clock)
        self._say(self._pace.under_way())

    def advance(self, n: int = 1) -> None:
        """Count, and say so if the last line is old enough."""
        assert self._pace is not None, "nothing has been started"
        self._pace.done += n
        if self._clock() - self._last_s >= LINE_EVERY_S and self._pace.done < self._pace.total:
            self._say(self._pace.under_way())

    def end(self) -> None:
        """Say how long it took; a second call says nothing."""
        if self._pace is not None:
            self._say(self._pace.over())
            self._pace = None

    def _say(self, how_far: str) -> None:
        self._last_s = self._clock()
        self._write(f"{self._what}: {how_far}")


class _PaceColumn(ProgressColumn):
    """The task's Pace as text."""

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        return Text(pace.over() if task.fields["over"] else pace.under_way())


class Bars:
    """Progress as bars, one under the other; a finished one stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: RichProgress | None = None
        self._task = TaskID(0)
        self._pace: Pace | None = None

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Draw the bar."""
        self.end()
        self._pace = Pace(total=total, done=done)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), _PaceColumn())
        self._live = RichProgress(*columns, console=self._console)
        self._task = self._live.add_task(clean(what), total=total, completed=done, pace=self._pace, over=False)
        self._live.start()

    def advance(self, n: int = 1) -> None:
        """Move it on."""
        assert self._pace is not None and self._live is not None, "nothing has been started"
        self._pace.done += n
        self._live.advance(self._task, n)

    def end(self) -> None:
        """Leave it as it is."""
        if self._live is not None:
            self._live.update(self._task, over=True)
            self._live.stop()
            self._live = None


@contextmanager
def shown() -> Generator[Progress]:
    """Progress on the standard error, ended at the end whatever happens."""
    console = Console(stderr=True)
    progress = Bars(console) if console.is_terminal else Lines(_to_stderr)
    try:
        yield progress
    finally:
        progress.end()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
