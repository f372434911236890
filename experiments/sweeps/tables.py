"""Tables on disk: CSV or Parquet, by the ending of the file's name, and written as a whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from servetwin.core import BadInput
from servetwin.core.files import make

Row = dict[str, Any]


def check_target(path: Path, endings: Sequence[str] = (".csv", ".parquet"), kind: str = "table") -> None:
    """Raise `BadInput` if no table, or other *kind* of file, can be written to *path*."""
    if path.suffix not in endings:
        raise BadInput(
            f"{path.suffix or 'no ending'} is no kind of {kind}", where=str(path), right=" or ".join(endings)
        )
    check_plain(path)
    make_folder(path.parent)


def check_plain(path: Path) -> None:
    """Raise `BadInput` if *path* is there and is no file that may be replaced: a folder, a pipe, a device."""
    if path.is_dir():
        raise BadInput("this is a folder", where=str(path), right="a file")
    if os.path.lexists(path) and not path.is_file() and not path.is_symlink():
        raise BadInput("this is no plain file", where=str(path), right="the name of a file")


def make_folder(path: Path) -> None:
    """Make a folder that the user named, or raise `BadInput`. It goes again if the command fails and leaves nothing
    in it (`servetwin.core.files`)."""
    try:
        make(path)
    except OSError as error:
        raise BadInput(error.strerror or "cannot be made", where=str(path), right="a folder of yours") from None


def write(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Write *rows*; the columns are those given, or all that occur, in order of appearance."""
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    if path.suffix != ".parquet":
        write_text(path, as_csv(rows, names))
        return
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    write_whole(path, lambda partial: pyarrow.parquet.write_table(table, partial))


def write_text(path: Path, text: str) -> None:
    """Write a file that holds *text*, as `write_whole` does."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let *write* make the file *path* under another name, and then give it its own: it is there whole, or as it was
    before. A symbolic link of that name is replaced, and nothing is written through it. Raises `BadInput`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed and had the same number, or somebody's link
        with partial.open("x"):
            pass
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise BadInput(error.strerror or "cannot be written", where=str(path), right="a file of yours") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """*rows* as CSV text; what is missing or None is left empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else value
