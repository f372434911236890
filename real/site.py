"""A device with a model on it: the slots of its requests, and the units that run its modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from servetwin.core import BadInput, Request, ServeTwinError

from .kinds import Kind
from .modules import Model
from .options import Options
from .schedule import steps_table
from .unit import WIDTH, Unit

#: Module name of what turns the result of a model without a VAE into an image.
OUTPUT = "output"


class Progress:
    """Where a request stands on a device: its *slot*, and the rows of its denoising steps once it has begun them."""

    __slots__ = ("done", "request", "rows", "slot")

    def __init__(self, request: int, slot: int) -> None:
        self.request = request
        self.slot = slot
        self.rows: np.ndarray | None = None
        self.done = 0


class Site:
    """*kind* on the torch device *device*."""

    def __init__(self, kind: Kind, options: Options, device: torch.device) -> None:
        self.kind = kind
        self.options = options
        self.device = device
        self.gpu = device.type == "cuda"
        self.model = Model(kind, options, device)
        self.units: dict[str, Unit] = {}
        self.generator = torch.Generator(device)
        self.reset()

    def reset(self) -> None:
        """Forget all requests."""
        self.progress: dict[int, Progress] = {}
        self.free = list(range(self.options.slots - 1, -1, -1))

    def warm(self, module: str, limit: int) -> Unit:
        """The unit of *module* for batches of up to *limit*, with every size run once."""
        if limit > self.options.slots:
            raise BadInput(f"batches of up to {limit} do not fit into {self.options.slots} slots", right=f"{limit}")
        unit = self.units.get(module)
        if unit is None or unit.limit < limit:
            body = self.model.bodies[module]
            unit = self.units[module] = Unit(
                module, body, limit, self.device, eager=self.options.eager, priority=self.priority(module)
            )
            with torch.no_grad():
                unit.warm(range(1, limit + 1))
        return unit

    def priority(self, module: str) -> int:
        """The priority of the streams on which *module* is captured and runs: -1 goes before 0."""
        first = self.options.first
        return -1 if first != "none" and (first == "loop") == (module == self.kind.loop) else 0

    # -- slots ------------------------------------------------------------------------------------------

    def take(self, request: Request) -> Progress:
        """The request's progress here; a new slot and what it brings if it comes for the first time."""
        progress = self.progress.get(request.id)
        if progress is None:
            progress = self._occupy(request.id)
            self.model.bring(progress.slot, request.id)
        return progress

    def _occupy(self, request: int) -> Progress:
        if not self.free:
            raise ServeTwinError(f"more than {self.options.slots} requests have begun: raise the number of slots")
        progress = self.progress[request] = Progress(request, self.free.pop())
        return progress

    def release(self, request: int) -> None:
        """The request has ended."""
        progress = self.progress.pop(request, None)
        if progress is not None:
            self.free.append(progress.slot)

    def hand_over(self, request: int, other: Site) -> None:
        """Copy the slot of *request* to *other*, a site on another device, and free it here."""
        mine, theirs = self.progress[request], other._occupy(request)
        theirs.rows, theirs.done = mine.rows, mine.done
        if mine.rows is not None:
            theirs.rows = mine.rows.copy()
            theirs.rows[:, 0] = theirs.slot
        for name, tensor in self.model.state.items():
            other.model.state[name][theirs.slot].copy_(tensor[mine.slot])
        self.release(request)

    # -- work, on the current stream ---------------------------------------------------------------------

    def begin(self, progress: Progress, steps: int) -> None:
        """Set up noise and schedule of a request that starts its loop."""
        options, kind = self.options, self.kind
        table = steps_table(options.scheduler, steps, kind.betas)
        rows = np.empty((steps, WIDTH), dtype=np.float32)
        rows[:, 0] = progress.slot
        rows[:, 1:5] = table.rows
        rows[:, 5] = kind.guidance
        progress.rows = rows
        progress.done = 0
        seed = (options.seed << 32) + progress.request
        self.model.noise(progress.slot, seed, table.first, self.generator)

    def step(self, batch: Sequence[Progress]) -> None:
        """One iteration. Who has done all its steps just stays: its latents do not change."""
        unit = self.units[self.kind.loop]
        into = unit.rows()
        for i, progress in enumerate(batch):
            rows = progress.rows
            assert rows is not None
            done = progress.done
            if done < len(rows):
                into[i] = rows[done]
                progress.done = done + 1
            else:
                into[i] = rows[-1]
                into[i, 3:5] = (1.0, 0.0)
        unit.launch(len(batch))

    def once(self, module: str, batch: Sequence[Progress]) -> None:
        """Run a module without a loop."""
        unit = self.units[module]
        into = unit.rows()
        for i, progress in enumerate(batch):
            into[i, 0] = progress.slot
        unit.launch(len(batch))

    def check(self, modules: Sequence[str]) -> None:
        """Raise `BadInput` unless this kind of model has all *modules*."""
        for module in modules:
            if module not in self.kind.modules:
                right = ", ".join(self.kind.modules)
                raise BadInput(f"{self.kind.name} has no module {module!r}", right=f"one of {right}")
