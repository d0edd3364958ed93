"""What a bench command says while it waits, on stderr: what for, how far it has come, and how long it can take.

On a terminal a bar or a spinner moves and goes away. Elsewhere, in the log of a pipeline, a line is written instead:
once a wait has taken two seconds, and then every 20 seconds of a run. Nothing waits in silence, and nothing that is
quick fills a log.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from setpoint.loadgen.process import Snapshot
from setpoint.metrics import rank_quantile

RECENT = 400
PATIENCE_S = 2.0
TOLD_EVERY_S = 20.0


@contextlib.contextmanager
def awaiting(console: Console, words: str) -> Iterator[None]:
    """Say what the block waits for: at once on a terminal, elsewhere when it has taken two seconds."""
    if console.is_terminal:
        with console.status(f"[dim]{words}[/]"):
            yield
        return
    late = threading.Timer(PATIENCE_S, console.print, (words,), {"style": "dim", "soft_wrap": True})
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


class Live:
    """One progress bar over a run: rate, in flight, P95 of TTFT over the last answers, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._words, self._told_s = "", 0.0
        self._total_s: float | None = None
        self._ttfts: deque[float] = deque(maxlen=RECENT)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._progress.stop()

    def begin(self, words: str, *, total_s: float | None = None) -> None:
        """Begin a run that lasts about `total_s` seconds, where that is known."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._ttfts.clear()
        self._words, self._total_s, self._told_s = words, total_s, 0.0
        self._task = self._progress.add_task(words, total=total_s, facts="")

    def show(self, snapshot: Snapshot) -> None:
        """Show how far the run has come."""
        self._ttfts.extend(record.ttft_s for record in snapshot.records if record.ttft_s is not None)
        facts = self._facts(snapshot)
        if self._task is not None:
            total_s = None if self._is_over(snapshot) else self._total_s
            self._progress.update(self._task, completed=snapshot.elapsed_s, facts=facts, total=total_s)
        if self._progress.disable and snapshot.elapsed_s >= self._told_s + TOLD_EVERY_S:
            self._told_s = snapshot.elapsed_s
            told = f"  {self._words}, {snapshot.elapsed_s:.0f} s: {facts}"
            self._console.print(told, style="dim", markup=False, highlight=False, soft_wrap=True)

    def _is_over(self, snapshot: Snapshot) -> bool:
        return self._total_s is not None and snapshot.elapsed_s > self._total_s

    def _facts(self, snapshot: Snapshot) -> str:
        if self._is_over(snapshot):
            return f"its time is over; {snapshot.ended} ended, the last of its answers are waited for"
        rate = snapshot.sent / snapshot.elapsed_s if snapshot.elapsed_s > 0.0 else 0.0
        p95 = f"  TTFT P95 {rank_quantile(sorted(self._ttfts), 0.95) * 1e3:,.0f} ms" if self._ttfts else ""
        return f"{rate:.2f}/s, {snapshot.in_flight} in flight, {snapshot.ended} ended{p95}"
