"""Progress with a rate and an ETA: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

LINE_EVERY = 10.0
BEAT = 30.0
"""Seconds after which a line is repeated although nothing was finished, so that a log shows life."""


def format_seconds(seconds: float) -> str:
    """Seconds as 12s, 3m05s or 1h02m."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Counts finished units of one stage.

    Work that an earlier run finished counts as done but not towards the rate.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self._resumed = done, done
        self._start = self._since = self._last_line = time.monotonic()
        self._note, self._counted = "", False
        self._bar: RichProgress | None = None
        self._ended = threading.Event()
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[state]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total, completed=done, state="")

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            return self
        if self._resumed:
            print(f"{self.label}: {self._resumed} of {self.total} {self.unit} were done before", file=sys.stderr)
        threading.Thread(target=self._beat, name="raylm-progress", daemon=True).start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished units; `note` is shown beside them (a loss, an accuracy, tokens a second)."""
        self.done += count
        self._show(note)

    def reach(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Say how many units are finished.

        Where nothing was counted before, or units of another kind, the rate begins here: what a stage needs to start,
        and what a killed run has done before it, tells nothing of the units to come.
        """
        if unit != self.unit or not self._counted:
            self.unit, self.total, self._note = unit, total, ""
            self._counted, self._resumed, self._since = True, done, time.monotonic()
        self.done = done
        self._show(note)

    def _show(self, note: str) -> None:
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, state=self._state())
        elif time.monotonic() - self._last_line >= LINE_EVERY:
            self._print_line()

    def _beat(self) -> None:
        while not self._ended.wait(1.0):
            if time.monotonic() - self._last_line >= BEAT:
                self._print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print_line()

    def _state(self) -> str:
        new = self.done - self._resumed
        seconds = time.monotonic() - self._since
        if new <= 0 or seconds <= 0:
            return self._note
        rate = new / seconds
        speed = f"{rate:.2f} {self.unit}/s" if rate >= 0.1 else f"{rate * 60:.1f} {self.unit}/min"
        left = f"ETA {format_seconds((self.total - self.done) / rate)}" if self.done < self.total else "done"
        return "  ".join(part for part in (speed, left, self._note) if part)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        line = f"{self.label}: {self.done}/{self.total} {self.unit} in {format_seconds(self.elapsed)}"
        print(f"{line}  {self._state()}", file=sys.stderr, flush=True)
