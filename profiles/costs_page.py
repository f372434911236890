"""The registry of costs as text for docs/reference/profiles.md: ``python -m servetwin.profiles.costs_page``."""

from __future__ import annotations

import sys

from .tables.cost_names import ARGUMENTS
from .tables.costs import NOBODY, REGISTRY


def as_markdown() -> str:
    """The registry as tables for docs/reference/profiles.md."""
    lines = [*(f"- `<{name}>`: {meaning}" for name, meaning in ARGUMENTS.items()), ""]
    readers = dict.fromkeys(entry.read_by for entry in REGISTRY)
    for reader in readers:
        title = "Read by nobody: they tell how a table came about" if reader == NOBODY else f"Read by the {reader}"
        lines += [f"{title}.", "", "| name | unit | form | meaning |", "|---|---|---|---|"]
        for entry in (e for e in REGISTRY if e.read_by == reader):
            form = " or ".join(f"by {entry.by}" if f == "by_batch" else f.replace("_", " ") for f in entry.forms)
            needs = f"; with `{'`, `'.join(entry.needs)}`" if entry.needs else ""
            lines.append(f"| `{entry.pattern}` | {entry.unit} | {form} | {entry.meaning}{needs} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
