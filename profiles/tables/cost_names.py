"""What names of costs are made of: an entry of the registry (`profiles.tables.costs`), and its arguments."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from .field_types import Fault

if TYPE_CHECKING:
    from .cost import Cost

#: Who reads the costs of engines of language models.
ENGINE = "simulator: engine of a language model"

Unit = Literal["seconds", "ratio"]
Form = Literal["value", "by_batch", "line", "quantiles", "sessions"]

#: What the arguments in names stand for.
ARGUMENTS = {
    "module": "a module of the profile that is the first of a stage",
    "loop": "the module of a loop",
    "once": "a module without a loop",
    "others": "one module, or two in the order of the pipeline with `_and_` between them",
    "from": "`client`, or the last module of the stage before",
    "to": "the first module of a stage",
    "policy": "a policy's class in lower case",
    "batch": "a batch size, 2 or more",
    "tokens": "tokens in a step",
    "size": "tokens of a prefill step, or sequences of a decode step",
    "seconds": "seconds without work",
    "kind": "`prefill` or `decode`",
    "other": "`prefill` or `decode`",
    "step": "`decode`, `prefill` or `mixed`: steps that only decode, only compute prompts, or do both",
}
#: How numbers in names are written.
NUMBERS = {
    "batch": r"[2-9]|[1-9]\d+",
    "tokens": r"[1-9]\d*",
    "size": r"[1-9]\d*",
    "seconds": r"0|[1-9]\d*|\d+\.\d*[1-9]",
}
#: Policies that NeuStream was measured beside, of which profiles may tell costs of their own: names that are nearly
#: one of these are misspelt.
POLICIES = ("clockwork", "edf", "fcfs", "neustream")
KINDS = ("prefill", "decode")
STEPS = ("decode", "prefill", "mixed")


@dataclass(frozen=True)
class CostName:
    """An entry of the registry. A cost of that name has one at least of *forms*; *by* is what the sizes of its table
    count. *least* bounds all its numbers, which lie above it where *above*, and so does *most*. A cost is read only
    beside those that *needs* names (same arguments)."""

    pattern: str
    unit: Unit
    forms: tuple[Form, ...]
    meaning: str
    read_by: str
    by: str = "batch size"
    needs: tuple[str, ...] = ()
    least: float | None = 0.0
    above: bool = False
    most: float | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(re.findall(r"<(\w+)>", self.pattern))

    def __call__(self, *arguments: str | int | Sequence[str]) -> str:
        """The name with these arguments, in the order of the pattern; a sequence of modules is joined."""
        given = iter(arguments)

        def text(_: object) -> str:
            value = next(given)
            return "_and_".join(value) if isinstance(value, list | tuple) else str(value)

        name = re.sub(r"<\w+>", text, self.pattern)
        if next(given, None) is not None:
            raise ValueError(f"{self.pattern} has {len(self.arguments)} arguments")
        return name

    def sizes(self, costs: Iterable[str], *arguments: str | Sequence[str]) -> dict[int, str]:
        """Of the names *costs* those of this entry with these arguments, by the number at the end."""
        stem = self(*arguments, "")
        ends = ((name[len(stem) :], name) for name in costs if name.startswith(stem))
        return dict(sorted((int(end), name) for end, name in ends if re.fullmatch(NUMBERS[self.arguments[-1]], end)))

    def match(self, name: str, known: Known) -> dict[str, str] | None:
        """The arguments in *name*, or None if it is not one of this entry."""
        found = re.fullmatch(_expression(self.pattern, known), name)
        if found is None:
            return None
        given = found.groupdict()
        if "others" in given:
            others, order = given["others"].split("_and_"), known.modules
            if given["module"] in others or [order.index(o) for o in others] != sorted(
                {order.index(o) for o in others}
            ):
                return None
        return given

    def may_stand(self, known: Known) -> bool:
        """Whether such a profile may have it: what engines take is of language models, the rest of the others."""
        engine = self.read_by == ENGINE or bool({"kind", "step"} & set(self.arguments))
        return known.tokens if engine else bool(known.modules)

    def faults(self, name: str, given: Mapping[str, str], cost: Cost, names: Collection[str]) -> Fault | None:
        """What is wrong with *cost*, called *name*, where there are costs of all these *names*."""
        at = ("costs", name)
        if cost.unit != self.unit:
            return Fault(f"is {cost.unit!r}", (*at, "unit"), repr(self.unit))
        if not any(form in self.forms for form in cost.forms):
            return Fault(f"is given as {' and '.join(cost.forms)}", at, " or ".join(self.forms))
        for other in self.needs:
            wanted = re.sub(r"<(\w+)>", lambda m: given[m[1]], other)
            if wanted not in names:
                return Fault("is read beside another cost only, which is not there", at, f"{wanted} too")
        smallest = min(_numbers(cost), default=0.0)
        if self.least is not None and (smallest < self.least or (self.above and smallest == self.least)):
            return Fault(
                f"holds {smallest:g}", at, f"above {self.least:g}" if self.above else f"{self.least:g} or more"
            )
        largest = max(_numbers(cost), default=0.0)
        if self.most is not None and largest > self.most:
            unit = "it is in seconds" if self.unit == "seconds" else "it is a ratio: 1 is as fast as alone"
            return Fault(f"holds {largest:g}", at, f"{self.most:g} at most, as {unit}")
        return None


@dataclass(frozen=True)
class Known:
    """What names of a profile may be made of: its modules without those of a language model, and which are loops."""

    modules: tuple[str, ...]
    loops: tuple[str, ...]
    tokens: bool

    def choices(self, argument: str) -> tuple[str, ...]:
        """The words that an argument may be, where it is one of a few."""
        if argument in ("module", "to"):
            return self.modules
        # Where none is said to be a loop (a CSV file cannot say it) any may be one.
        once = tuple(m for m in self.modules if m not in self.loops)
        pairs = tuple(f"{a}_and_{b}" for a, b in itertools.combinations(self.modules, 2))
        return {
            "loop": self.loops or self.modules,
            "once": once,
            "others": (*self.modules, *pairs),
            "from": ("client", *self.modules),
            "kind": KINDS if self.tokens else (),
            "other": KINDS if self.tokens else (),
            "step": STEPS if self.tokens else (),
        }[argument]


@cache
def _expression(pattern: str, known: Known) -> str:
    def part(found: re.Match[str]) -> str:
        argument = found[1]
        if argument == "policy":
            form = "[a-z_][a-z0-9_]*"
        elif argument in NUMBERS:
            form = NUMBERS[argument]
        else:
            form = "|".join(map(re.escape, sorted(known.choices(argument), key=len, reverse=True))) or "(?!)"
        return f"(?P<{argument}>{form})"

    return re.sub(r"<(\w+)>", part, pattern.replace(".", r"\."))


def _numbers(cost: Cost) -> Iterable[float]:
    if cost.value is not None:
        yield cost.value
    if cost.by_batch is not None:
        yield from cost.by_batch.values
    if cost.line is not None:
        yield from (cost.line.constant, cost.line.constant + cost.line.per_request)
    if cost.quantiles is not None:
        yield from cost.quantiles.values
    yield from (session.value for session in cost.sessions or ())
