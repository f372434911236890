"""What a profile file may say. Unknown keys are errors; nothing can be changed after reading.

A profile file (YAML) describes one model on one device. Its tables give seconds by batch size; its costs give what
no table holds. The classes below say what each key means; the files under ``data/`` are examples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from .llm.schema import TokenData
from .tables.cost import Cost, Lists
from .tables.costs import DEVICE, GAP, GAP_OF, HANDOVER, HOST, JOIN, REGROUP
from .tables.costs import check as check_costs
from .tables.field_types import Fault, Finite, Late, Name, Natural, NotNegative, Source, Strict, Text
from .tables.latency_table import BatchTable, LatencyTable

SCHEMA_VERSION = 1

Kind = Literal[
    "scheduler",
    "slo",
    "slo_committed",
    "clockwork",
    "clockwork_slo",
    "measured",
    "all",
    "leaves",
    "starts",
    "overlaps",
    "self_profile",
    "inferred",
]
#: What each kind of table is.
KINDS: dict[Kind, str] = {
    "scheduler": "the table that the scheduler of the measured system used",
    "slo": "the table from which SLOs were computed, where it is another",
    "slo_committed": "the table for SLOs in the driver as published, where the logged runs used another",
    "clockwork": "the table by which Clockwork predicted, where it is another",
    "clockwork_slo": "the table from which Clockwork's driver computed its SLOs, where it is another",
    "measured": "period of an iteration, start to start, with nothing else going on",
    "all": "period of an iteration, all iterations",
    "leaves": "period of an iteration after which a request left",
    "starts": "period of an iteration with which a request began",
    "overlaps": "period of an iteration while the last stage computed",
    "self_profile": "running mean of the host time of one compute call, as the system itself kept it",
    "inferred": "period of an iteration, solved from how long requests stayed (no log of iterations exists)",
}
#: Where a kind that a module does not have is looked up instead.
FALLBACK: dict[Kind, tuple[Kind, ...]] = {
    "slo": ("scheduler",),
    "slo_committed": ("slo", "scheduler"),
    "clockwork": ("scheduler",),
    "clockwork_slo": ("slo", "scheduler"),
}

#: The modules of a language model; their latencies stand under ``tokens``.
TOKEN_MODULES = ("prefill", "decode")


class Origin(Strict):
    """Who published the numbers; file names in `Source` are relative to this."""

    repository: Text
    commit: Text | None = None
    licence: Text | None = None
    restated_from: Text | None = None  #: the extract that these numbers went through


class Basis(Strict):
    """What a profile that nobody measured as such stands on: *imported* from another tool's measurements, or
    *estimated* by a formula. *source* says by what, *known_error* what that is known to be off by. Every report of a
    run by it says so."""

    kind: Literal["imported", "estimated"]
    source: Text
    known_error: Text


class Device(Strict):
    name: Text
    kind: Literal["gpu", "cpu"]
    memory_gib: Finite | None = None
    count: Annotated[StrictInt, Field(ge=1)] = 1  #: how many of them serve one batch together


class Table(Lists):
    """Seconds by batch size, one iteration for a loop module. *statistic* says of what (mean, median, ...)."""

    seconds: tuple[Finite, ...]
    statistic: Text
    source: Source
    note: Text | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        fault = LatencyTable.fault(self.batch, self.seconds)
        if fault:
            raise ValueError(fault)
        self._same_length()
        return self


class ModuleProfile(Strict):
    """One module; *rows_per_request* is 2 where classifier-free guidance doubles the rows inside the network."""

    loop: StrictBool = False
    rows_per_request: Annotated[StrictInt, Field(ge=1)] = 1
    tables: Annotated[dict[Kind, Table], Field(min_length=1)]


class Peak(Strict):
    """The most memory that a batch takes while it is computed, in GiB by batch size, on top of weights and slots."""

    batch: tuple[Natural, ...]
    gib: tuple[NotNegative, ...]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        fault = BatchTable.fault(self.batch, self.gib)
        if fault:
            raise ValueError(fault)
        return self


class ShapeMemory(Strict):
    """What requests of one shape take of the device's memory: *slot_gib* each from when it is taken in until it
    leaves (latents, conditioning), and the *peak* of a batch."""

    slot_gib: NotNegative
    peak: Peak


class ShapeTables(Strict):
    """The modules of one shape: *size* is height and width in pixels, *guidance* the rows that an image takes inside
    the network (left out: those of the profile's own shape)."""

    size: tuple[Natural, Natural]
    frames: Natural = 1
    guidance: Natural | None = None
    modules: Annotated[dict[Name, ModuleProfile], Field(min_length=1)]
    memory: ShapeMemory | None = None


class Shapes(Strict):
    """What was measured of requests of other shapes than the profile's own, which is ``image``.

    The times of *fixed* modules are the same for all (text encoders). *between* says what is done of a size that was
    not measured: it is "refused", or the times lie on the straight line between the next smaller and the next larger
    measured size by "pixels" (times frames). Beyond the smallest and the largest it is refused in any case.
    """

    between: Literal["refused", "pixels"] = "refused"
    weights_gib: NotNegative | None = None  #: of all modules; then each shape says what it takes besides
    memory: ShapeMemory | None = None  #: of the profile's own shape
    fixed: tuple[Name, ...] = ()
    measured: tuple[ShapeTables, ...] = ()


class Degree(Strict):
    """What was measured where *devices* of them compute a step together (sequence parallelism): the modules that
    this makes faster, or slower, and of other shapes than the profile's own likewise. Those that are left out take
    what they take on one device."""

    devices: Annotated[StrictInt, Field(ge=2)]
    modules: Annotated[dict[Name, ModuleProfile], Field(min_length=1)]
    measured: tuple[ShapeTables, ...] = ()


class Execution(Strict):
    """How a diffusion model's loop was executed: each batch size as a CUDA *graph* or not, and what of its network
    was compiled. For the rest see `servetwin.real.diffusion.execution.Execution`. What is left out was not done."""

    graphs: StrictBool
    compile: Literal["none", "blocks", "whole"]
    mode: Text | None = None
    compiled_sizes: tuple[Annotated[StrictInt, Field(ge=1)], ...] | None = None
    channels_last: StrictBool | None = None
    fused_projections: StrictBool | None = None
    attention: Literal["flash", "cudnn", "efficient"] | None = None
    ready_seconds: Finite | None = None  #: what it took until all batch sizes could be served

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.compile == "none") != (self.compiled_sizes is None):
            raise ValueError("compiled_sizes go with compile: blocks or whole")
        return self

    def as_dict(self) -> dict[str, Any]:
        """What it says of how, as run records say it."""
        found = self.model_dump(mode="json", exclude_none=True, exclude={"ready_seconds"})
        return {name: value for name, value in found.items() if value is not False or name == "graphs"}


class ProfileFile(Strict):
    """One model on one device."""

    schema_version: Literal[1]
    name: Annotated[StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$")]
    description: Text
    device: Device
    model: Text
    precision: Text
    image: tuple[StrictInt, StrictInt] | None = None  #: height and width in pixels
    frames: Natural | None = None  #: of a video; left out, it is images that are made
    batch_counts: Text  #: what "batch" counts
    measured_when: Text
    origin: Origin
    limits_of_data: Text | None = None  #: what is not known, or not to be trusted
    basis: Annotated[Basis, Late()] | None = (
        None  #: where the steps were not measured by this project's profiler, or by a log
    )
    execution: Annotated[Execution, Late()] | None = (
        None  #: of a diffusion model; profiles of before it say it in words, if at all
    )
    took: dict[Text, NotNegative] | None = None  #: seconds of taking it, by part, and by shape of other shapes
    modules: dict[Name, ModuleProfile] = Field(default_factory=dict)
    shapes: Annotated[Shapes, Late()] | None = (
        None  #: what was measured of other sizes than *image*, which then must be given
    )
    degrees: tuple[Annotated[Degree, Late()], ...] = ()  #: what was measured on several devices at once
    tokens: Annotated[TokenData, Late()] | None = None  #: prefill and decode of a language model
    costs: dict[Name, Cost] = Field(default_factory=dict)
    verdict: tuple[Text, ...] | None = None  #: what was not clean when it was taken (`servetwin.profiles.verdict`)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.modules and self.tokens is None:
            raise ValueError("a profile needs modules, or tokens")
        known = {*self.modules, *(TOKEN_MODULES if self.tokens else ())}
        for name, cost in self.costs.items():
            for module in cost.modules:
                if module not in known:
                    raise ValueError(f"cost {name} names unknown module {module!r}")
        self.check_costs(self.costs)
        self._check_shapes()
        self._check_degrees()
        return self

    def _check_degrees(self) -> None:
        """Raise `Fault` for the first degree that does not fit the profile, or for what is known of one device
        only."""
        seen: set[int] = set()
        shapes = (
            {(*shape.size, shape.frames, shape.guidance) for shape in self.shapes.measured} if self.shapes else set()
        )
        for i, degree in enumerate(self.degrees):
            path = ("degrees", str(i))
            if degree.devices in seen:
                raise Fault(f"{degree.devices} devices stand twice", (*path, "devices"), "each number once")
            seen.add(degree.devices)
            self._check_modules(path, degree.modules)
            own = {(*shape.size, shape.frames, shape.guidance) for shape in degree.measured}
            if own != shapes or len(own) < len(degree.measured):
                what = "these are not the shapes that were measured on one device"
                raise Fault(what, (*path, "measured"), "each shape of shapes.measured, once")
            for j, shape in enumerate(degree.measured):
                self._check_modules((*path, "measured", str(j)), shape.modules, [*degree.modules])
                if shape.memory is not None:
                    raise Fault("memory is not known by degree", (*path, "measured", str(j), "memory"), "none")
        if not self.degrees:
            return
        if self.shapes is not None and self.shapes.weights_gib is not None:
            what = "memory is known of one device only, and times of several at once"
            raise Fault(what, ("shapes", "weights_gib"), "neither weights_gib nor memory beside degrees")
        loops = [name for name, module in self.modules.items() if module.loop]
        other = next((name for name in self.costs if name not in map(REGROUP, loops)), None)
        if other is not None:
            what = "this cost is that of one device, and nobody knows it of several at once"
            raise Fault(what, ("costs", other), f"{', '.join(map(REGROUP, loops))} alone beside degrees")

    def _check_modules(
        self, path: tuple[str, ...], modules: Mapping[str, ModuleProfile], asked: Sequence[str] | None = None
    ) -> None:
        """Raise `Fault` for the first of *modules* that is not the profile's, or that says not what it must; they are
        those that are *asked* for, if that is said."""
        if asked is not None and sorted(modules) != sorted(asked):
            raise Fault(f"it has modules {', '.join(sorted(modules))}", (*path, "modules"), ", ".join(asked))
        for name, module in modules.items():
            if name not in self.modules:
                raise Fault(f"unknown module {name!r}", (*path, "modules"), ", ".join(self.modules))
            if "scheduler" not in module.tables:
                raise Fault("no table 'scheduler'", (*path, "modules", name, "tables"), "scheduler: {...}")
            if module.loop != self.modules[name].loop:
                raise Fault("loop is not as in the profile", (*path, "modules", name, "loop"))

    def _check_shapes(self) -> None:
        """Raise `Fault` for the first shape that says not all that it must, or stands twice."""
        if self.shapes is None:
            return
        if self.image is None:
            raise Fault("other shapes are given, and not the one of the profile", ("image",), "[height, width]")
        for name in self.shapes.fixed:
            if name not in self.modules:
                raise Fault(f"unknown module {name!r}", ("shapes", "fixed"), ", ".join(self.modules))
        self._check_memory(self.shapes)
        asked = [name for name in self.modules if name not in self.shapes.fixed]
        rows = max(module.rows_per_request for module in self.modules.values())
        seen = {(*self.image, self.frames or 1, rows)}
        for i, shape in enumerate(self.shapes.measured):
            path = ("shapes", "measured", str(i))
            key = (*shape.size, shape.frames, shape.guidance or rows)
            if key in seen:
                raise Fault("this shape stands twice", (*path, "size"), "each shape once, none of them the profile's")
            seen.add(key)
            if sorted(shape.modules) != sorted(asked):
                what = f"it has modules {', '.join(sorted(shape.modules))}"
                raise Fault(what, (*path, "modules"), f"{', '.join(asked)}; others under fixed")
            self._check_modules(path, shape.modules)

    def check_costs(self, names: Mapping[str, Cost]) -> None:
        """Raise `Fault` for the first of the costs *names* that the registry does not know in such a profile."""
        loops = {name: module.loop for name, module in self.modules.items()}
        check_costs(names, loops, tokens=self.tokens is not None)
        for name in self.modules:
            self._check_times(name, names)
        sent = names.get(HANDOVER())
        if sent is not None and sent.line is not None and min(sent.line.constant, sent.line.per_request) < 0.0:
            raise Fault("handing KV over takes less than no time", ("costs", HANDOVER(), "line"), "0 or more")

    def _check_times(self, module: str, costs: Mapping[str, Cost]) -> None:
        """Raise `Fault` for the first cost by which an iteration of *module*, of any size that its tables hold, would
        take no time or less, or which would be less than nothing itself."""
        sizes: dict[int, float] = {}
        for table in self.modules[module].tables.values():
            for n, seconds in zip(table.batch, table.seconds, strict=True):
                sizes[n] = min(seconds, sizes.get(n, math.inf))
        for name, cost in costs.items():
            at = ("costs", name)
            if cost.line is not None and name.split(".")[0] in (module, "whole"):
                last = cost.line.constant + cost.line.per_request * max(sizes)
                if last < 0.0:
                    what = f"is {last:.3g} {cost.unit} for {max(sizes)} requests"
                    raise Fault(what, (*at, "line", "per_request"), "0 or more")
        join, usual = costs.get(JOIN(module)), costs.get(GAP(module))
        parts = [costs[name] for name in (HOST(module), DEVICE(module)) if name in costs]
        for n, seconds in sorted(sizes.items()):
            if join is not None and join.value is not None and join.value < 0.0:
                alone = max((part.upto(n, hold=True)[n] for part in parts), default=seconds)
                if (left := alone + n * join.value) <= 0.0:
                    each = f"{join.value:g} s for each of {n} that join"
                    what = f"{each} leave {left:.3g} s of the {alone:.3g} s of an iteration"
                    raise Fault(what, ("costs", JOIN(module)), f"more than {-alone / n:.3g}")
            for name, own in ((n, c) for n, c in costs.items() if n.startswith(GAP_OF(module, ""))):
                less = usual.upto(n, hold=True)[n] - own.upto(n, hold=True)[n] if usual is not None else 0.0
                if less >= seconds:
                    what = f"{less:.3g} s less than {GAP(module)}, of an iteration's {seconds:.3g} s"
                    raise Fault(what, ("costs", name), f"less than {seconds:.3g} s below it")

    def _check_memory(self, shapes: Shapes) -> None:
        """Raise `Fault` unless the memory of all shapes is known, or that of none."""
        said: dict[tuple[str, ...], ShapeMemory | None] = {("memory",): shapes.memory}
        said |= {("measured", str(i), "memory"): shape.memory for i, shape in enumerate(shapes.measured)}
        if shapes.weights_gib is None:
            path = next((path for path, memory in said.items() if memory is not None), None)
            if path is not None:
                what = "the memory of a shape is given, and not that of the weights"
                raise Fault(what, ("shapes", "weights_gib"), "weights_gib: ..., in GiB")
            return
        if self.device.memory_gib is None:
            raise Fault("nobody knows how much memory the device has", ("device", "memory_gib"), "a number of GiB")
        for path, memory in said.items():
            if memory is None:
                raise Fault("its memory is not given", ("shapes", *path), "slot_gib and peak: {batch, gib}")


class CostsFile(Strict):
    """Costs kept beside a profile in a file of their own (``<profile>.costs.yaml``): what was calibrated later."""

    schema_version: Literal[1]
    profile: Text
    description: Text
    costs: dict[Name, Cost]
