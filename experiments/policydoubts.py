"""What of a policy no hash can hold: clocks, random numbers without a seed, the environment. Rows of such a policy
are not kept, for they may come out otherwise the next time."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_CLOCK = "reads the clock"
_RANDOM = "draws random numbers that no seed of its own decides"
_ENVIRONMENT = "reads environment variables"
_LOOK = "looks at a file without reading it"

#: By dotted name, what using it means; "*" is for all names of a module.
_USES = {
    **dict.fromkeys(
        [f"time.{n}{ns}" for n in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
         for ns in ("", "_ns")], _CLOCK
    ),
    **dict.fromkeys(["time.localtime", "time.gmtime", "time.ctime", "time.strftime", "os.times"], _CLOCK),
    **dict.fromkeys(
        ["datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"],
        _CLOCK,
    ),
    "random.*": _RANDOM,
    "numpy.random.*": _RANDOM,
    "secrets.*": _RANDOM,
    "uuid.uuid1": _RANDOM,
    "uuid.uuid4": _RANDOM,
    "os.urandom": _RANDOM,
    "os.getrandom": _RANDOM,
    "os.environ": _ENVIRONMENT,
    "os.environb": _ENVIRONMENT,
    "os.getenv": _ENVIRONMENT,
    **dict.fromkeys(["os.stat", "os.lstat", "os.access"], _LOOK),
    **dict.fromkeys(
        [f"os.path.{n}" for n in ("exists", "lexists", "isfile", "isdir", "getsize", "getmtime", "getctime",
                                  "getatime")], _LOOK
    ),
    "os.getpid": "depends on the process that it runs in",
    "sys.argv": "reads the command line",
    "socket.gethostname": "depends on the machine",
    "platform.node": "depends on the machine",
    **{f"{name}.*": "may read files in ways that cannot be followed"
       for name in ("pyarrow", "h5py", "polars", "duckdb", "netCDF4")},
}  # fmt: skip

#: Generators that are of the policy alone, if they are given a seed.
_SEEDED = {
    "random.Random",
    *(f"numpy.random.{n}" for n in ("default_rng", "RandomState", "SeedSequence", "PCG64", "PCG64DXSM", "Philox",
                                    "MT19937", "SFC64")),
}  # fmt: skip
#: Methods of paths, by name alone.
_LOOKS = {"exists", "is_file", "is_dir", "is_symlink", "stat", "lstat"}
_HARMLESS = {"numpy.random.Generator", "numpy.random.BitGenerator"}


def doubts_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What the code *tree* uses that makes rows of it no function of what is hashed: what, and in which line."""
    names = _imported(tree)
    seeded = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (node.args or node.keywords)
        and not any(isinstance(a, ast.Constant) and a.value is None for a in node.args)
    }
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    typed = _annotations(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOOKS:
            if _dotted(node.func, names) is None:  # else it is told by its full name
                yield _LOOK, node.lineno
            continue
        if id(node) in inner or id(node) in typed or not isinstance(node, ast.Attribute | ast.Name):
            continue
        full = _dotted(node, names)
        if full is None or full in _HARMLESS or (full in _SEEDED and id(node) in seeded):
            continue
        for known, what in _USES.items():
            if (
                full == known
                or full.startswith(f"{known}.")
                or (known.endswith(".*") and full.startswith(known[:-1]))
            ):
                yield what, node.lineno
                break


def _annotations(tree: ast.AST) -> set[int]:
    """What stands in annotations of types, which draws nothing."""
    found: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            inner = getattr(node, name, None)
            if isinstance(inner, ast.AST):
                found |= {id(n) for n in ast.walk(inner)}
    return found


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> the dotted name that it was imported as."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The full name behind ``a.b.c``, if its first part was imported."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])
