"""A profile in use: tables, estimates and costs of one model on one device."""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from servetwin.core import BadInput, Shape

from .csv_profile import read_csv
from .degrees import of_degree
from .llm.schema import TokenData, TokenKind
from .llm.step_table import TokenTable
from .schema import FALLBACK, TOKEN_MODULES, CostsFile, Kind, ModuleProfile, ProfileFile
from .shapes import Memory, memory_of, of_shape
from .tables.cost import Cost
from .tables.costs import STEP_BETWEEN
from .tables.field_types import Fault
from .tables.latency_table import BatchTable, LatencyTable
from .tables.loading import check, read

DATA = Path(__file__).parent / "data"
COSTS = ".costs.yaml"
SCHEDULER: tuple[Kind, ...] = ("scheduler",)


class Profile:
    """What was measured of one model on one device. Made by `load`; never changes.

    >>> profile = load("rtx4090/dit-s2-256")
    >>> profile.modules
    ('dit', 'vae')
    >>> profile.table("dit", "scheduler")(1)
    0.008644959650933743
    >>> estimate = profile.estimate("clockwork")
    >>> estimate("vae", 2)
    0.018185735922306778
    """

    def __init__(self, data: ProfileFile) -> None:
        self.data = data
        self._tables: dict[tuple[str, Kind], LatencyTable] = {}
        self._estimates: dict[tuple[tuple[Kind, ...], bool], Callable[[str, int], float]] = {}
        self._tokens: dict[tuple[TokenKind, bool, bool], TokenTable] = {}
        self._shapes: dict[Shape, Profile] = {}
        self._degrees: dict[int, Profile] = {1: self}

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules, in the order of the pipeline."""
        return (*self.data.modules, *(TOKEN_MODULES if self.data.tokens else ()))

    def is_loop(self, module: str) -> bool:
        """Whether a request runs *module* many times."""
        return self._module(module).loop

    @property
    def token_data(self) -> TokenData:
        """What the file says of a language model. Raises `BadInput` if it is of none."""
        if self.data.tokens is None:
            raise BadInput("this is no profile of a language model", where=self.name, right="one with tokens")
        return self.data.tokens

    def tokens(self, *kinds: TokenKind, hold: bool = False, between: bool = True) -> TokenTable:
        """The first of *kinds* of latency models that there is (see `TOKEN_KINDS`); without *kinds*, the scheduler's.

        With *between* false no time passes between steps. The same arguments give the same object. Raises `BadInput`
        if there is none.
        """
        have = self.token_data.kinds
        for kind in kinds or ("scheduler",):
            if kind in have:
                table = self._tokens.get((kind, hold, between))
                if table is None:
                    name = f"{self.name} ({kind})"
                    pause = self._between(kind) if between else None
                    table = TokenTable(have[kind], name=name, hold=hold, between_cost=pause)
                    self._tokens[kind, hold, between] = table
                return table
        what = f"no latency model of the kind {' or '.join(kinds or ('scheduler',))}"
        raise BadInput(what, where=self.name, right=" or ".join(have))

    def _between(self, kind: TokenKind) -> Cost | None:
        """What a scheduler plans with are whole steps; the time between measured ones is a cost of its own."""
        return None if kind == "scheduler" else self.data.costs.get(STEP_BETWEEN())

    def at(self, shape: Shape) -> Profile:
        """The same for requests of that *shape* (`servetwin.profiles.shapes`). Raises `BadInput` if it was not
        measured, and nothing says how to tell it from what was."""
        found = self._shapes.get(shape)
        if found is None:
            data = of_shape(self.data, shape)
            found = self._shapes[shape] = self if data is self.data else Profile(data)
        return found

    @property
    def degrees(self) -> tuple[int, ...]:
        """The numbers of devices that may compute a step together, ascending: 1, and those that were measured."""
        return (1, *sorted(degree.devices for degree in self.data.degrees))

    def on(self, degree: int) -> Profile:
        """The same where so many devices compute each step together. Raises `BadInput` if that was not measured."""
        found = self._degrees.get(degree)
        if found is None:
            found = self._degrees[degree] = Profile(of_degree(self.data, degree))
        return found

    def memory_of(self, shape: Shape) -> Memory | None:
        """What requests of that *shape* take of the device's memory; None if nothing is said of memory."""
        return memory_of(self.data, shape)

    def has(self, module: str, kind: Kind) -> bool:
        """Whether *module* has a table of this very kind, without falling back."""
        return kind in self._module(module).tables

    def table(self, module: str, *kinds: Kind, hold: bool = False) -> LatencyTable:
        """The first of *kinds* that *module* has; seconds by batch size. Without *kinds*, the scheduler's.

        What a scheduler would have used falls back as `FALLBACK` says ("clockwork" and "slo" to "scheduler"): a
        profile holds such a table only where it is another one. What was measured never falls back unasked: name
        the second choice, as in ``table("vae", "measured", "scheduler")``. Raises `BadInput` if there is none.
        """
        asked = kinds or SCHEDULER
        have = self._module(module).tables
        for kind in itertools.chain.from_iterable((k, *FALLBACK.get(k, ())) for k in asked):
            if kind in have:
                return self._table(module, kind).holding(hold)
        what = f"module {module} has no table {' or '.join(asked)}"
        raise BadInput(what, where=self.name, right=" or ".join(have))

    def estimate(self, *kinds: Kind, hold: bool = False) -> Callable[[str, int], float]:
        """A function of (module, batch) that gives seconds as `table` would: what a `WorkerView` wants.

        The same arguments give the same function. A batch size that was asked for before costs two look-ups.
        """
        key = (kinds or SCHEDULER, hold)
        found = self._estimates.get(key)
        if found is None:
            modules = _Modules(self, *key)

            def found(module: str, batch: int) -> float:
                return modules[module][batch]

            self._estimates[key] = found
        return found

    def solo(self, *kinds: Kind) -> dict[str, float]:
        """Seconds of each module for a batch of one, as `table` finds them: what an SLO is a multiple of."""
        return {module: self.table(module, *kinds)(1) for module in self.data.modules}

    @property
    def costs(self) -> dict[str, Cost]:
        """The measured terms that are no latency tables, by name."""
        return dict(self.data.costs)

    def cost(self, name: str) -> Cost:
        """The cost of this name; `BadInput` listing the known ones if there is none."""
        try:
            return self.data.costs[name]
        except KeyError:
            known = ", ".join(self.data.costs) or "a profile with costs"
            raise BadInput(f"no cost {name!r}", where=self.name, right=known) from None

    def seconds(self, name: str, otherwise: float | None = None, *, when: datetime | None = None) -> float:
        """The cost *name* as one number (its value in the session of *when*, where it has such), or *otherwise*."""
        if otherwise is not None and name not in self.data.costs:
            return otherwise
        return self.cost(name).scalar(when)

    def cost_table(self, name: str, *, hold: bool = False) -> BatchTable:
        """The cost *name* by batch size."""
        return self.cost(name).table(name=f"{self.name} {name}", hold=hold)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the content, independent of how the file is laid out. Caches key on it."""
        content = self.data.model_dump(mode="json", exclude={"verdict"})  # which follows from the rest
        _drop_unsaid(content)
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def _module(self, name: str) -> ModuleProfile:
        try:
            return self.data.modules[name]
        except KeyError:
            raise BadInput(f"no module {name!r}", where=self.name, right=", ".join(self.data.modules)) from None

    def _table(self, module: str, kind: Kind) -> LatencyTable:
        table = self._tables.get((module, kind))
        if table is None:
            data = self.data.modules[module].tables[kind]
            table = LatencyTable(data.batch, data.seconds, name=f"{self.name} {module} ({kind})")
            self._tables[module, kind] = table
        return table

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if isinstance(other, Profile) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[object, ...]:
        return (Profile, (self.data,))

    def __repr__(self) -> str:
        return f"<Profile {self.name}: {', '.join(self.modules)}>"


#: Keys that profiles had no place for once: where they say nothing, digests are those of that time.
LATER = frozenset(
    {
        *("basis", "shape", "memory_gib", "over_context", "beside", "per_square", "decoding", "blind", "compiled"),
        "decode_regions",
        "degrees",
        "execution",
        "frames",
        "shapes",
        "took",
    }
)


def _drop_unsaid(content: Any) -> None:
    """Take out of a profile's *content* what it does not say at keys of `LATER`; a device's memory stays."""
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _drop_unsaid(part)
    if isinstance(content, dict) and "count" not in content:
        for key in LATER & content.keys():
            if content[key] is None or content[key] == []:
                del content[key]


class _Modules(dict[str, "_Sizes"]):
    """Seconds by module, then by batch size; filled as they are asked for."""

    def __init__(self, profile: Profile, kinds: tuple[Kind, ...], hold: bool) -> None:
        super().__init__()
        self.profile, self.kinds, self.hold = profile, kinds, hold

    def __missing__(self, module: str) -> _Sizes:
        sizes = self[module] = _Sizes(self.profile.table(module, *self.kinds, hold=self.hold))
        return sizes


class _Sizes(dict[int, float]):
    def __init__(self, table: LatencyTable) -> None:
        super().__init__()
        self.table = table

    def __missing__(self, n: int) -> float:
        value = self[n] = self.table(n)
        return value


def names() -> list[str]:
    """The names of the profiles that come with ServeTwin."""
    files = [f for f in DATA.rglob("*.yaml") if not f.name.endswith(COSTS)]
    return sorted(f.relative_to(DATA).with_suffix("").as_posix() for f in files)


@functools.cache
def _names_at_first() -> frozenset[str]:
    """The same, listed once: what came since is looked for when it is not among them."""
    return frozenset(names())


def load(name_or_path: str | Path) -> Profile:
    """The profile of this name (one of `names`), or the one in the YAML file at this path; a CSV file will do for one
    that has nothing but latencies.

    Costs in a file ``<profile>.costs.yaml`` beside it are added. A profile is read once per process
    and file version. Raises `BadInput`.
    """
    path = _place(name_or_path)
    beside = path.with_name(path.stem + COSTS)
    return _load(path, beside, _version(path), _version(beside))


def files(name_or_path: str | Path) -> tuple[Path, ...]:
    """The files that a profile is read from: its own, and that of costs beside it if there is one."""
    path = _place(name_or_path)
    beside = path.with_name(path.stem + COSTS)
    return (path, beside) if beside.exists() else (path,)


def _place(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml", ".csv"):
        return path
    name = str(name_or_path)
    if name in _names_at_first() or name in names():
        return DATA / f"{name}.yaml"
    device, _, model = name.rpartition("/")
    others = [n for n in names() if model and n.endswith(f"/{model}")]
    here = [n for n in names() if n.startswith(f"{device}/{model}-")]
    what, own = f"unknown profile {name!r}", "a path to a YAML or CSV file of your own"
    if device.isalnum() and (here or others):
        what += "" if here else f": nobody has measured {model} on {device} yet"
        raise BadInput(what, right=f"one of {', '.join(here or others)}, or {own}")
    # All of them would be a page: those that look most like it, if any does.
    near = difflib.get_close_matches(name, names(), n=5, cutoff=0.5)
    alike = f"; {', '.join(near)} look like it" if near else ""
    raise BadInput(what, right=f"one of the {len(names())} that `servetwin profiles` lists, or {own}{alike}")


def _version(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; the time of its content alone can be set back."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


@functools.lru_cache(maxsize=64)
def _load(path: Path, beside: Path, _: object, has_costs: object) -> Profile:
    data = check(read_csv(path), ProfileFile, where=str(path)) if path.suffix == ".csv" else read(path, ProfileFile)
    if has_costs is not None:
        data = _with_costs(data, read(beside, CostsFile), beside)
    return Profile(data)


def _with_costs(data: ProfileFile, more: CostsFile, where: Path) -> ProfileFile:
    if more.profile != data.name:
        raise BadInput(f"is for profile {more.profile!r}", where=f"{where}: profile", right=data.name)
    for name, cost in more.costs.items():
        if name in data.costs:
            raise BadInput("stands in the profile already", where=f"{where}: costs.{name}", right="another name")
        for module in cost.modules:
            if module not in data.modules:
                raise BadInput(f"unknown module {module!r}", where=f"{where}: costs.{name}.modules")
    costs = {**data.costs, **more.costs}
    try:
        data.check_costs(costs)
    except Fault as fault:
        raise BadInput(fault.what, where=f"{where}: {'.'.join(fault.path)}", right=fault.right) from None
    return data.model_copy(update={"costs": costs})
