"""Times of requests of other shapes than a profile's own.

A shape that was measured takes what was measured. What was not follows from that by rules that are stated here; where
none applies it is refused:

- *images* of one prompt are rows of the same batch: n requests of k images take what n x k requests of one image
  take. Modules that are ``fixed`` (text encoders) run once a request.
- *guidance*: a loop whose requests take g times the rows of a measured one takes what a batch g times as large takes,
  for a whole number g. Modules around the loop see each image once.
- *sizes* between two measured ones, where the profile says ``between: pixels``: at each batch size on the straight
  line between the next smaller and the next larger, by pixels times frames; sizes of equally many pixels take the
  same. As attention grows faster than the pixels do, the line lies above such a curve: it overestimates if anything.

What a shape takes of the device's memory follows from what was measured in the same way; guidance counts in all of
it.

Costs that a profile has beside its tables (joins, leaves, transport, spread) are those of its own shape. What it
knows of an iteration's host and device time apart is of its own shape only: others take their tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from servetwin.core import BadInput, Shape

from .schema import Kind, ModuleProfile, ProfileFile, ShapeMemory, Table
from .tables.costs import AHEAD, DEVICE, HOST, TIME
from .tables.latency_table import BatchTable, LatencyTable, interpolate


class _Measured(NamedTuple):
    """A shape that was measured: its modules, those that are fixed included."""

    height: int
    width: int
    frames: int
    guidance: int
    modules: Mapping[str, ModuleProfile]
    memory: ShapeMemory | None

    @property
    def pixels(self) -> int:
        return self.height * self.width * self.frames


def rows_of(data: ProfileFile) -> int:
    """The rows that an image of the profile's own shape takes inside the network."""
    return max((module.rows_per_request for module in data.modules.values()), default=1)


def of_shape(data: ProfileFile, shape: Shape) -> ProfileFile:
    """*data* for requests of that *shape*; *data* itself if it is of that shape. Raises `BadInput` if it cannot
    tell."""
    if data.image is None:
        what = f"it does not say of which size its images are, so nothing is known of {shape}"
        raise BadInput(what, where=f"{data.name}: image", right="[height, width]")
    guidance = shape.guidance or rows_of(data)
    own = (*data.image, data.frames or 1, rows_of(data)) == (shape.height, shape.width, shape.frames, guidance)
    if own and shape.images == 1:
        return data
    usable = [m for m in _measured(data) if guidance % m.guidance == 0]
    near = _neighbours(data, shape, usable)
    tables = [_scaled(m, shape.images, guidance // m.guidance, data, shape) for m in near]
    modules = tables[0] if len(tables) == 1 else _between(near, tables, shape)
    gone = {name for m, module in data.modules.items() for name in _of_size(m, module.loop)}
    costs = {name: cost for name, cost in data.costs.items() if name not in gone}
    return data.model_copy(
        update={
            "name": f"{data.name} at {shape}",
            "image": (shape.height, shape.width),
            "frames": shape.frames if data.frames is not None else None,
            "modules": modules,
            "costs": costs,
            "shapes": None,
        }
    )


def _of_size(module: str, loop: bool) -> Sequence[str]:
    """The costs that stand for a table of *module*, of the profile's own shape."""
    return (DEVICE(module), HOST(module), AHEAD(module)) if loop else (TIME(module),)


def _measured(data: ProfileFile) -> list[_Measured]:
    assert data.image is not None
    rows, shapes = rows_of(data), data.shapes
    found = [
        _Measured(*data.image, data.frames or 1, rows, data.modules, shapes.memory if shapes is not None else None)
    ]
    for said in shapes.measured if shapes is not None else ():
        assert shapes is not None
        modules = {m: data.modules[m] if m in shapes.fixed else said.modules[m] for m in data.modules}
        found.append(_Measured(*said.size, said.frames, said.guidance or rows, modules, said.memory))
    return found


def _neighbours(data: ProfileFile, shape: Shape, usable: Sequence[_Measured]) -> list[_Measured]:
    """What *shape* is told from: the measured shape of its size, or the next smaller and the next larger."""
    exact = [m for m in usable if (m.height, m.width, m.frames) == (shape.height, shape.width, shape.frames)]
    if exact:
        return [max(exact, key=lambda m: m.guidance)]
    rule = data.shapes.between if data.shapes is not None else "refused"
    known = sorted(usable, key=lambda m: (m.pixels, -m.guidance))
    if rule == "pixels":
        same = [m for m in known if m.pixels == shape.pixels]
        if same:
            return same[:1]
        below, above = ([m for m in known if m.pixels < shape.pixels], [m for m in known if m.pixels > shape.pixels])
        if below and above:
            largest = [m for m in below if m.pixels == below[-1].pixels]
            return [largest[0], above[0]]
    there = ", ".join(dict.fromkeys(str(Shape(m.height, m.width, m.frames, m.guidance)) for m in _measured(data)))
    between = "a size between them" if rule == "pixels" else "shapes.between: pixels, for sizes between them"
    right = f"one of {there}; or {between}"
    raise BadInput(f"nobody measured {shape}", where=data.name, right=right)


def _scaled(of: _Measured, images: int, guidance: int, data: ProfileFile, shape: Shape) -> dict[str, ModuleProfile]:
    """The modules of requests of so many *images*, whose rows are *guidance* times those of the shape *of*."""
    fixed = data.shapes.fixed if data.shapes is not None else ()
    made = {}
    for name, module in of.modules.items():
        factor = 1 if name in fixed else images * (guidance if module.loop else 1)
        tables: dict[Kind, Table] = {}
        for kind, table in module.tables.items():
            if factor == 1:
                tables[kind] = table
                continue
            largest = table.batch[-1] // factor
            sizes = [n for n in range(1, largest + 1) if n * factor >= table.batch[0]]
            if not sizes:
                what = f"a request of {shape} is a batch of {factor} of {name}, and {table.batch[-1]} was measured"
                raise BadInput(what, where=data.name, right="fewer images, or larger batches in the profile")
            times = LatencyTable(table.batch, table.seconds, name=f"{data.name} {name}")
            tables[kind] = _table(table, sizes, [times(n * factor) for n in sizes])
        made[name] = module.model_copy(update={"tables": tables})
    return made


def _between(
    near: Sequence[_Measured], tables: Sequence[Mapping[str, ModuleProfile]], shape: Shape
) -> dict[str, ModuleProfile]:
    """What lies between two sizes, at each batch size that both have."""
    pixels = [m.pixels for m in near]
    made = {}
    for name, module in tables[0].items():
        other = tables[1][name]
        found: dict[Kind, Table] = {}
        for kind in module.tables.keys() & other.tables.keys():
            both = [t.tables[kind] for t in (module, other)]
            times = [LatencyTable(t.batch, t.seconds, name=name) for t in both]
            sizes = range(max(t.smallest for t in times), min(t.largest for t in times) + 1)
            seconds = [interpolate(shape.pixels, pixels, [t(n) for t in times]) for n in sizes]
            found[kind] = _table(both[0], sizes, seconds)
        made[name] = module.model_copy(update={"tables": found})
    return made


def _table(like: Table, sizes: Sequence[int], seconds: Sequence[float]) -> Table:
    return Table(batch=tuple(sizes), seconds=tuple(seconds), statistic=like.statistic, source=like.source)


class Memory(NamedTuple):
    """What requests of a shape take, in GiB: each from when it is taken in, and a batch by its size while it runs."""

    slot: float
    peak: BatchTable


def memory_of(data: ProfileFile, shape: Shape) -> Memory | None:
    """What *data* says of the memory of requests of that *shape*; None if it says nothing of memory."""
    if data.shapes is None or data.shapes.weights_gib is None:
        return None
    guidance = shape.guidance or rows_of(data)
    near = _neighbours(data, shape, [m for m in _measured(data) if guidance % m.guidance == 0])
    slots, peaks = [], []
    for of in near:
        assert of.memory is not None
        rows = shape.images * (guidance // of.guidance)
        slots.append(of.memory.slot_gib * rows)
        table = BatchTable(of.memory.peak.batch, of.memory.peak.gib, name=f"{data.name}: peak of {shape}")
        sizes = [n for n in range(1, table.largest // rows + 1) if n * rows >= table.smallest]
        if not sizes:
            what = f"a request of {shape} is a batch of {rows}, and the memory of {table.largest} was measured"
            raise BadInput(what, where=data.name, right="fewer images, or larger batches in the profile")
        peaks.append(BatchTable(sizes, [table(n * rows) for n in sizes], name=table.name))
    if len(near) == 1:
        return Memory(slots[0], peaks[0])
    pixels = [m.pixels for m in near]
    both = range(max(t.smallest for t in peaks), min(t.largest for t in peaks) + 1)
    peak = [interpolate(shape.pixels, pixels, [t(n) for t in peaks]) for n in both]
    return Memory(interpolate(shape.pixels, pixels, slots), BatchTable(both, peak, name=peaks[0].name))
