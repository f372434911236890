"""What of a policy no hash can hold: clocks, random numbers without a seed, the environment. Rows of such a policy
are not kept, for they may come out otherwise the next time."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator

_CLOCK = "reads the clock"
_RANDOM = "draws random numbers that no seed of its own decides"
_ENVIRONMENT = "reads environment variables"
_HASH = "goes by hash(), which differs from process to process unless PYTHONHASHSEED is set"
_SETS = "goes through a set, whose order differs from process to process unless PYTHONHASHSEED is set"
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
    **dict.fromkeys(["threading.Thread", "threading.Timer", "_thread.*", "concurrent.futures.*", "multiprocessing.*",
                     "asyncio.*"], "starts threads or processes, which cannot be followed"),
    "linecache.*": "reads files that are kept from one run to the next",
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
    if not os.environ.get("PYTHONHASHSEED", "random").isdigit():
        yield from _hashed(tree)
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


#: Functions to which the order of what they go through matters.
_IN_ORDER = {"list", "tuple", "iter", "enumerate", "zip", "map", "filter", "deque", "reversed"}
_SET_TYPES = {"set", "frozenset", "Set", "AbstractSet", "FrozenSet"}


def goes_by_hashes(tree: ast.AST) -> bool:
    """Whether rows of the code *tree* may depend on PYTHONHASHSEED, as far as it tells."""
    return next(_hashed(tree), None) is not None


def _hashed(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Where *tree* goes by the hashes of texts or objects: `hash`, but in a ``__hash__``, and sets that are gone
    through in their own order, as far as the code tells that they are sets."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    within = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "__hash__" for n in ast.walk(f)
    }
    sets: set[str] = set()
    for node in ast.walk(tree):
        given, kind = getattr(node, "value", None), getattr(node, "annotation", None)
        said = kind.value if isinstance(kind, ast.Subscript) else kind
        typed = isinstance(said, ast.Name | ast.Attribute) and _last(said) in _SET_TYPES and not _of_numbers(kind)
        if isinstance(node, ast.arg) and typed:
            sets.add(node.arg)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and (typed or (kind is None and _is_set(given, sets))):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            sets |= {_last(t) for t in targets if isinstance(t, ast.Name | ast.Attribute)}
    for node in ast.walk(tree):
        through: list[ast.AST | None] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "hash" and "hash" not in own and id(node) not in within:
                yield _HASH, node.lineno
            if node.func.id in _IN_ORDER:
                through += node.args
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("join", "extend"):
                through += node.args
            elif node.func.attr == "pop" and not node.args:
                through.append(node.func.value)
        elif isinstance(node, ast.For | ast.comprehension):
            through.append(node.iter)
        elif isinstance(node, ast.Starred) and isinstance(node.ctx, ast.Load):
            through.append(node.value)
        for one in through:
            if one is not None and _is_set(one, sets):
                yield _SETS, int(getattr(one, "lineno", 1))


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _of_numbers(annotation: ast.AST | None) -> bool:
    """Whether it says a set of numbers, whose hashes are the same everywhere."""
    return isinstance(annotation, ast.Subscript) and _last(annotation.slice) in ("int", "float", "bool")


def _is_set(node: ast.AST | None, known: set[str]) -> bool:
    """Whether *node* is a set, of more than numbers as far as can be told; *known* are names that hold sets."""
    if isinstance(node, ast.Set):
        return not all(isinstance(e, ast.Constant) and isinstance(e.value, int | float) for e in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return _is_set(node.left, known) or _is_set(node.right, known)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
    return isinstance(node, ast.SetComp) or (isinstance(node, ast.Name | ast.Attribute) and _last(node) in known)


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
