"""The command line: one thin command per verb.

A command parses its options, imports its verb, calls it and prints. Nothing heavy is imported
before a command runs, so ``ciper --help`` answers at once. Results go to stdout; progress, notes
and errors go to stderr. Exit status: 0 done, 1 what was checked is not right, 2 an error that CIPER
names, 130 interrupted.

    commands     the verbs                  options   what they share, and how options are read
    benchmarks   those of `ciper benchmark` screen    progress, notes and the border of errors
    datasets     those of `ciper data`      answering many photos of `localize`
    imagery      those of `ciper imagery`
"""

from __future__ import annotations

import signal

from ciper.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; the script ``ciper`` and ``python -m ciper`` call this."""
    # Whoever is told to end cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="ciper")
