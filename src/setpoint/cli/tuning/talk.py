"""What the tuner says while it works: lines and one progress bar with the time left, all on stderr."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class _Left(ProgressColumn):
    """The seconds left of the time that the run was given."""

    def render(self, task: Task) -> Text:
        left = max(0, round((task.total or 0.0) - task.completed))
        return Text(f"about {left // 60}:{left % 60:02d} left", style="progress.remaining")


class Talk:
    """A context manager; `clock` in seconds. On a terminal a bar runs, elsewhere there are lines only."""

    def __init__(self, total_s: float, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._start = clock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Left(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=total_s)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._progress.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def doing(self, what: str) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=what, completed=self.elapsed_s)

    def tick(self) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=self.elapsed_s)

    def say(self, line: str) -> None:
        """Write one line."""
        self._console.print(f"{self.elapsed_s:4.0f} s  {line}", highlight=False, soft_wrap=True)
