"""ServeTwin: serve deep-learning requests in simulation, or for real, under a scheduling policy of your choice.

    import servetwin

    result = servetwin.run("dit-s2-256-rtx4090", rate=4, policy="edf")
    result.attainment, result.requests.to_pandas()

The names in `__all__` are the public ones (docs/reference/python.md says what each takes and gives); all else may
change. A name is imported when it is first used, so that ``import servetwin`` costs nothing, and a part of it such as
`servetwin.sim` brings in no other. Begin with `runs`, then `sweeps`, `searches` and `comparisons`; what they take is
read by `given`, what they give is in `results`, `tables` and `figures`, and what they raise in `errors`. `testing` is
the kit for tests of policies, `pytest_plugin` has it as fixtures.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from servetwin.core import Decision, Policy, Task, WorkerView

    from .comparisons import Comparison, compare
    from .errors import Error, RunError
    from .results import Result, load
    from .runs import run
    from .searches import Answer, Search, search
    from .sweeps import Sweep, sweep
    from .tables import Table

    __version__: str

__all__ = [
    "Answer",
    "Comparison",
    "Decision",
    "Error",
    "Policy",
    "Result",
    "RunError",
    "Search",
    "Sweep",
    "Table",
    "Task",
    "WorkerView",
    "__version__",
    "compare",
    "load",
    "run",
    "search",
    "sweep",
]

#: Where each of them is.
_HOMES = {
    "servetwin.core": ("Decision", "Policy", "Task", "WorkerView"),
    "servetwin.comparisons": ("Comparison", "compare"),
    "servetwin.errors": ("Error", "RunError"),
    "servetwin.results": ("Result", "load"),
    "servetwin.runs": ("run",),
    "servetwin.searches": ("Answer", "Search", "search"),
    "servetwin.sweeps": ("Sweep", "sweep"),
    "servetwin.tables": ("Table",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME_OF:
        value = getattr(_import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'servetwin' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("servetwin")
    except PackageNotFoundError:  # used from its sources
        return "0+unknown"
