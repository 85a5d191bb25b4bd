"""What a person sees besides results: bars, notes and errors, all of them on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ciper.errors import CiperError

Progress = Callable[[str, int, int], None]


class Verbs(TyperGroup):
    """Runs a command and turns the errors that CIPER names into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CiperError as error:
            note_error(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            note("interrupted; nothing that was finished is lost")
            raise typer.Exit(130) from error


def note(line: str) -> None:
    """One line beside the results."""
    typer.echo(line, err=True)


def note_error(error: CiperError) -> None:
    """One line, whatever line breaks a library's message brought along."""
    note(f"error: {' '.join(str(error).split())}")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Bars with the time left; yields what a verb calls with (what, done, total)."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("left:"),
        bars.TimeRemainingColumn(),
        bars.TimeElapsedColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    display = bars.Progress(*columns, console=Console(stderr=True))

    def update(what: str, done: int, total: int) -> None:
        # Started with the first news: a verb that fails at once leaves its one line and no more.
        display.start()
        # "training | 41 pairs/s": one bar, whose note changes.
        name = what.partition(" | ")[0]
        if name not in tasks:
            tasks[name] = display.add_task(name, total=total)
        display.update(
            tasks[name], description=what.replace(" | ", ", "), completed=done, total=total
        )

    try:
        yield update
    finally:
        if tasks:
            display.stop()
