"""Files and folders that are written whole or not at all.

What is unfinished lies beside its place under another name: a reader sees what was there before or
all that is new, and a writer that fails leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ciper.errors import OutputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A neighbour of `path` to write to, which takes its place when the block ends well.

    Its content is on the disk before its name is. A killed process leaves `.NAME.PID.tmp`.

    Raises:
        OSError: it cannot be written; whoever calls says what to do then.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_free(out: Path) -> bool:
    """Whether nothing lies at a path, or an empty folder."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def check_cache(folder: Path) -> None:
    """Refuse a cache that cannot be a folder.

    Raises:
        OutputError: something else lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--cache {folder} is a file; expected a folder, new or of before")


@contextmanager
def finished_folder(out: Path, *refusals: type[Exception]) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place when the block ends well, else vanishes.

    A folder that is there already is replaced: whoever calls has seen that it may be.

    Args:
        out: the folder to make.
        refusals: errors besides OSError that say that something cannot be written.

    Raises:
        OutputError: `out` cannot be written.
    """
    failures: tuple[type[Exception], ...] = (OSError, *refusals)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write beside {out}: {error.strerror}; choose another place"
        ) from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp lets nobody else read
        _put_in_place(folder, out)
    except failures as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot write {out}: {reason}; free some space or go elsewhere"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.replace(out)
        return
    old = folder.with_name(folder.name + "-old")
    out.replace(old)
    folder.replace(out)
    shutil.rmtree(old)
