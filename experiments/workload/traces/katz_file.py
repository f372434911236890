"""Files of Katz's trace of text-to-image services (github.com/modelscope/Katz, ``trace``): one list of requests.

Each says ``timestamp`` (a number; what reads the trace elsewhere takes differences of it for seconds), ``scene_id``
(one of two services), ``base_model_id``, ``controlnets`` and ``loras``; neither steps nor sizes. The file itself was
not seen: its form is that of its README and of the scripts beside it, which sort requests by time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from servetwin.core import BadInput

from .lines import MOST_WHOLE, Line, opened

#: What each request says; and so many characters at the beginning tell such a file.
FIELDS, HEAD = ("timestamp", "scene_id", "base_model_id"), 4096


def is_katz(path: Path) -> bool:
    """Whether *path* is such a file, as far as its beginning tells."""
    with opened(path) as file:
        head = file.read(HEAD)
    return head.lstrip().startswith("[") and all(f'"{name}"' in head for name in FIELDS)


def rows(path: Path) -> Iterator[Line]:
    """The requests of the file, by time; the service is the tenant. Numbered from 1 by their places in the list.
    Raises `BadInput` for what is none."""
    with opened(path, MOST_WHOLE) as file:
        try:
            found = json.load(file)
        except json.JSONDecodeError as error:
            raise BadInput(f"no valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
        except (UnicodeDecodeError, OSError):
            raise
        except (ValueError, RecursionError) as error:
            raise BadInput(f"no valid JSON: {error}", where=str(path)) from None
    for number, row in enumerate(found, 1):
        stamp = row.get("timestamp") if isinstance(row, dict) else None
        if isinstance(stamp, bool) or not isinstance(stamp, int | float):
            right = '{"timestamp": 12.5, "scene_id": "A", "base_model_id": ..., ...}'
            raise BadInput(f"{str(stamp)[:40]!r} is no time", where=f"{path}:{number}: timestamp", right=right)
    order = sorted(range(len(found)), key=lambda number: found[number]["timestamp"])
    for number in order:
        row = found[number]
        yield number + 1, {"timestamp": row["timestamp"], "tenant": row.get("scene_id")}
