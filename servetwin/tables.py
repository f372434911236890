"""A table of plain values, which becomes Arrow, pandas or polars where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

from .errors import needed

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

#: How many rows are shown, and in lines of how many characters.
SHOWN, WIDTH = 10, 120


class Table:
    """Rows and columns: ``table[3]`` is a row (a dict), ``table[:3]`` a list of them, ``table["rate"]`` a column (a
    list), ``len(table)`` the
    number
    of rows. What is not known is None. Anything that takes Arrow's stream protocol takes a table as it is.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = {name: list(values) for name, values in columns.items()}
        self._length = len(next(iter(self._columns.values()), ()))

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        return list(self._columns)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...

    @overload
    def __getitem__(self, key: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, key: int | str | slice) -> dict[str, Any] | list[Any]:
        if isinstance(key, str):
            if key not in self._columns:
                raise KeyError(f"there is no column {key!r} (right would be: {', '.join(self._columns)})")
            return list(self._columns[key])
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(self._length))]
        return {name: values[key] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(self._length))

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows."""
        return list(self)

    def to_arrow(self) -> pyarrow.Table:
        """A `pyarrow.Table`. A column of values that are of no one type is one of texts."""
        try:
            import pyarrow
        except ImportError:
            raise needed("pyarrow", "pyarrow") from None
        arrays = {}
        for name, values in self._columns.items():
            try:
                arrays[name] = pyarrow.array(values)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
                arrays[name] = pyarrow.array([None if v is None else str(v) for v in values])
        return pyarrow.table(arrays)

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame`, made of `to_arrow`. Needs pandas (extra ``servetwin[data]``)."""
        try:
            import pandas  # noqa: F401 - pyarrow would not say what to install
        except ImportError:
            raise needed("pandas", "servetwin[data]") from None
        return self.to_arrow().to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """A `polars.DataFrame`, made of `to_arrow`. Needs polars (extra ``servetwin[data]``)."""
        try:
            import polars
        except ImportError:
            raise needed("polars", "servetwin[data]") from None
        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        lines = [
            self.columns,
            *([_shown(v) for v in row.values()] for row, _ in zip(self, range(SHOWN), strict=False)),
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self._columns))]
        fit = sum(end <= WIDTH for end in accumulate(width + 2 for width in widths))
        text = [
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths[:fit], strict=False)) for line in lines
        ]
        size = f"{len(self)} rows, {len(self._columns)} columns"
        return "\n".join([*text, *([size] if len(self) > SHOWN or fit < len(self._columns) else [])])


def by_column(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of *rows*: all that occur, in order of appearance."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def table_of(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of *rows*."""
    return Table(by_column(rows))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
