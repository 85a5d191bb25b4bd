"""What a run says of itself: tables of metrics, TensorBoard events, pace."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Metrics = Mapping[str, float]


class Pace:
    """How fast the steps are, smoothed over about the last twenty.

    Args:
        num_pairs: that a step takes.
    """

    def __init__(self, num_pairs: int) -> None:
        self.num_pairs = num_pairs
        self.seconds_per_step = 0.0
        self._last = time.monotonic()

    @property
    def pairs_per_s(self) -> float:
        """Pairs per second."""
        return self.num_pairs / max(self.seconds_per_step, 1e-9)

    def tick(self) -> None:
        """A step was done."""
        now = time.monotonic()
        taken, self._last = now - self._last, now
        weight = 0.05 if self.seconds_per_step else 1.0
        self.seconds_per_step += (taken - self.seconds_per_step) * weight

    def metrics(self, num_steps_left: int) -> dict[str, float]:
        """Pairs per second, and the seconds until the end."""
        eta_s = num_steps_left * self.seconds_per_step
        return {"pairs_per_s": self.pairs_per_s, "eta_s": eta_s}


class MetricsLog:
    """A table of metrics (CSV): one row every `every` steps with means since the last row.

    Rows that lie beyond `start`, the step that the run goes on from, are dropped: they belong to
    steps that are now done again. The seconds go on from the last row.
    """

    def __init__(self, path: Path, *, start: int = 0, every: int = 20) -> None:
        self.path, self.every = path, every
        self._rows: list[Metrics] = []
        self._written = self._read(start)
        self._started = time.monotonic()
        if self._written:
            self._started -= float(self._written[-1].get("seconds", 0))

    def add(self, step: int, row: Metrics) -> dict[str, float] | None:
        """Collects a step; returns the means when a row was written."""
        self._rows.append(row)
        if step % self.every:
            return None
        means = {name: sum(r[name] for r in self._rows) / len(self._rows) for name in row}
        means = {"step": step, "seconds": time.monotonic() - self._started, **means}
        self._rows.clear()
        self._write(means)
        return means

    def _read(self, start: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            written = list(csv.DictReader(file))
        kept = [row for row in written if float(row["step"]) <= start]
        if len(kept) < len(written):
            self._rewrite(kept, list(written[0]))
        return kept

    def _write(self, means: Metrics) -> None:
        row = {name: f"{value:.6g}" for name, value in means.items()}
        is_first = not self._written
        known = list(row) if is_first else list(self._written[0])
        self._written.append(row)
        if is_first or set(row) != set(known):
            # Another version wrote the older rows, or another criterion: columns of both.
            self._rewrite(self._written, list(dict.fromkeys([*known, *row])))
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, fieldnames=known).writerow(row)

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        for row in rows:
            row.update({name: "" for name in columns if name not in row})
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(rows)


class RunLog:
    """All that a run tells while it lasts: `metrics.csv`, `validation.csv` and TensorBoard events.

    Events are written when the package tensorboard is installed.

    Args:
        out: RUN folder; None to write nothing.
        start: step that the run goes on from.
    """

    def __init__(self, out: Path | None, start: int) -> None:
        self.latest: dict[str, float] = {}
        self._steps = self._validations = None
        self._write_event: Callable[[str, float, int], None] = _write_nothing
        self._close: Callable[[], None] = _close_nothing
        if out is not None:
            self._steps = MetricsLog(out / "metrics.csv", start=start)
            self._validations = MetricsLog(out / "validation.csv", start=start, every=1)
            self._open_events(out)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add_step(self, step: int, row: Metrics) -> None:
        """Collects a step's losses and statistics; `latest` are the last means."""
        means = self._steps.add(step, row) if self._steps else None
        if means:
            self.latest = means
            self._add_events("", step, means)

    def add_validation(self, step: int, row: Metrics) -> None:
        """Writes the figures of a validation."""
        if self._validations:
            self._validations.add(step, row)
            self._add_events("validation/", step, row)

    def _open_events(self, out: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        writer = SummaryWriter(str(out))
        self._write_event, self._close = writer.add_scalar, writer.close

    def _add_events(self, prefix: str, step: int, row: Metrics) -> None:
        for name, value in row.items():
            self._write_event(prefix + name, value, step)


def _write_nothing(_name: str, _value: float, _step: int) -> None:
    """Where there is no TensorBoard."""


def _close_nothing() -> None:
    """Where there is no TensorBoard."""
