"""Which packages are installed: those of the optional extras are asked for before they are imported."""

from __future__ import annotations

from importlib.util import find_spec


def not_installed(*names: str) -> list[str]:
    """Those of *names* that are no installed packages.

    A mere folder of that name beside the program (a clone of vLLM's repository, say) is none: Python would import it
    as a namespace without anything in it.
    """
    specs = [(name, find_spec(name)) for name in names]
    return [name for name, spec in specs if spec is None or spec.origin is None]
