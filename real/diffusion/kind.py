"""What a diffusion model is, as data: its modules, their sizes, how it is sampled. No torch is needed to read it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from servetwin.core import BadInput, Module, Pipeline, Shape

Betas = tuple[float, float, Literal["linear", "scaled_linear"]]
Prediction = Literal["epsilon", "v_prediction", "flow"]

#: What goes with each kind of prediction; the names are those of ``--sampler``.
SAMPLERS: dict[Prediction, tuple[str, ...]] = {
    "epsilon": ("ddim", "euler", "dpm++2m"),
    "v_prediction": ("ddim", "euler", "dpm++2m"),
    "flow": ("flow-euler", "dpm++2m"),
}


@dataclass(frozen=True)
class Sampling:
    """How a model was trained, and so how it is sampled.

    *prediction* is what the loop's network gives: the noise, the velocity ``v`` (Salimans and Ho 2022, 2202.00512),
    or the velocity of a rectified flow. *betas* are the first and last beta of the noise schedule and how they are
    spaced. With *leading*, Euler and DPM-Solver++ take the timesteps that diffusers calls leading, else evenly
    spaced ones up to the last. A flow's noise levels are shifted by *shift* (Esser et al. 2024, 2403.03206, 5.3.2),
    or by ``exp(mu)`` with mu linear in the tokens of an image: *dynamic* is (mu at the fewest, mu at the most,
    fewest, most tokens). *sampler* is the one that is used by default.
    """

    prediction: Prediction = "epsilon"
    betas: Betas = (1e-4, 0.02, "linear")
    leading: bool = False
    shift: float = 1.0
    dynamic: tuple[float, float, int, int] | None = None
    sampler: str = "ddim"

    @property
    def samplers(self) -> tuple[str, ...]:
        """The names of the samplers that can be used."""
        return SAMPLERS[self.prediction]

    def chosen(self, asked: str | None) -> str:
        """The sampler *asked* for, or the default. Raises `BadInput` if it does not go with this model."""
        if asked is None:
            return self.sampler
        if asked not in self.samplers:
            what = f"sampler {asked!r} does not go with a model that predicts {_SPELT[self.prediction]}"
            raise BadInput(what, where="--sampler", right=" or ".join(self.samplers))
        return asked


_SPELT = {"epsilon": "noise", "v_prediction": "v", "flow": "a flow's velocity"}


@dataclass(frozen=True)
class Kind:
    """A model as it is served.

    *chain* are its modules in order, each with whether it loops; of several loops each goes on with the latents of
    the one before, in the same noise schedule. *groups* are the modules of each worker, as NeuStream deploys it (left
    out: each loop alone, and what is before, between and after them). *optional* modules may be left out of a
    pipeline. *networks* are the configurations of the modules' networks, *folders* where each lies in a checkpoint
    (left out: in a folder of its name). *image* is the height in pixels, *width* the width (None: the same),
    *frames* how many images a video has; *latent* is the shape of what the loop works on (channels, [frames,]
    height, width). *largest* is the batch up to which serving and profiling go by default, *rows* how many rows of
    the loop's network a request is (two with classifier-free guidance), *guidance* its scale. *precision* is that of
    the networks on a GPU.

    Requests may ask for other sizes (`at`). Their height and width in latents are whole numbers of *multiple*: the
    patch of a transformer, or what a U-Net halves and does not pad. *most* is the longest side, in pixels, that the
    network knows positions of (None: any), *square* says that it can make no other images. *unguided*: ``predict``
    is given None for the guidance where requests want none, and their rows are one an image. Modules that are *fixed*
    do the same whatever the shape, and touch neither latents nor images (text encoders): they are measured, and
    captured, once for all.

    *code* says where the class is that serves it: ``module:Class`` or ``file.py:Class``; whoever finds the kind
    fills it in.
    """

    name: str
    title: str
    chain: tuple[tuple[str, bool], ...]
    image: int
    latent: tuple[int, ...]
    networks: Mapping[str, Mapping[str, Any]] = field(repr=False)
    groups: tuple[tuple[str, ...], ...] = ()
    optional: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict, repr=False)
    largest: int = 12
    sampling: Sampling = Sampling()
    guidance: float = 1.0
    rows: int = 1
    width: int | None = None
    frames: int | None = None
    precision: Literal["float16", "bfloat16"] = "float16"
    multiple: int = 1
    most: int | None = None
    square: bool = False
    unguided: bool = False
    fixed: tuple[str, ...] = ()
    code: str = ""

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.chain)

    @property
    def loop(self) -> str:
        """The module that iterates; the first, if there are several."""
        return self.loops[0]

    @property
    def loops(self) -> tuple[str, ...]:
        """The modules that iterate."""
        return tuple(name for name, loops in self.chain if loops)

    def steps(self, work: Mapping[str, int]) -> int:
        """Denoising steps of a request with the iterations *work*, through all loops (1 in one that is not named)."""
        return sum(work.get(name, 1) for name in self.loops)

    def steps_before(self, loop: str, work: Mapping[str, int]) -> int:
        """Those of them that are over when the request comes to *loop*."""
        return sum(work.get(name, 1) for name in self.loops[: self.loops.index(loop)])

    @property
    def placement(self) -> list[list[str]]:
        """A worker for each of these groups: what NeuStream does."""
        if self.groups:
            return [list(group) for group in self.groups]
        found = itertools.groupby(self.chain, key=lambda part: part[0] if part[1] else "")
        return [[name for name, _ in parts] for _, parts in found]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image, self.image if self.width is None else self.width

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of what comes out, in bytes: 3 x [frames x] height x width."""
        return (3, *(() if self.frames is None else (self.frames,)), *self.size)

    @property
    def step(self) -> tuple[int, int]:
        """Of what heights and widths in pixels are multiples."""
        high, wide = (pixels // cells for pixels, cells in zip(self.size, self.latent[-2:], strict=True))
        return high * self.multiple, wide * self.multiple

    @property
    def frame_step(self) -> int:
        """Frames beyond the first are multiples of it, for a video."""
        return 1 if self.frames is None else max((self.frames - 1) // max(self.latent[1] - 1, 1), 1)

    def check_size(self, shape: Shape, where: str = "workload.shape") -> None:
        """Raise `BadInput` unless this model can make images, or videos, of that size."""
        sides = (shape.height, shape.width)
        if any(side % by for side, by in zip(sides, self.step, strict=True)):
            by = " and ".join(dict.fromkeys(map(str, self.step)))
            near = "x".join(str(max(round(side / n), 1) * n) for side, n in zip(sides, self.step, strict=True))
            raise BadInput(f"{shape}: sides of {self.name} are multiples of {by} pixels", where=where, right=near)
        if self.most is not None and max(sides) > self.most:
            what = f"{shape}: {self.name} knows no positions beyond {self.most} pixels"
            raise BadInput(what, where=where, right=f"at most {self.most} a side")
        if self.square and shape.height != shape.width:
            right = f"{shape.height}x{shape.height}"
            raise BadInput(f"{shape}: images of {self.name} are square", where=where, right=right)
        if self.frames is None and shape.frames > 1:
            raise BadInput(f"{shape}: {self.name} makes images", where=where, right="no frames")
        if self.frames is not None and (shape.frames - 1) % self.frame_step:
            near = str(round((shape.frames - 1) / self.frame_step) * self.frame_step + 1)
            what = f"{shape}: frames of {self.name} are one more than a multiple of {self.frame_step}"
            raise BadInput(what, where=where, right=f"frames: {near}")

    def at(self, shape: Shape, where: str = "workload.shape") -> Kind:
        """This model for requests of that shape. Raises `BadInput` if it cannot serve them."""
        self.check_size(shape, where)
        if shape.images != 1:
            what = f"{shape}: a real run makes one image of each prompt"
            raise BadInput(what, where=where, right="images: 1; or simulation")
        guidance = shape.guidance or self.rows
        if guidance != self.rows and not (self.unguided and guidance == 1):
            may = f"{self.rows}, or 1 for none" if self.unguided and self.rows > 1 else f"{self.rows}, or left out"
            what = f"{shape}: {self.name} runs {self.rows} row{'s' if self.rows > 1 else ''} an image"
            raise BadInput(what, where=where, right=f"guidance: {may}")
        cells = [side * n // pixels for side, n, pixels in zip(shape[:2], self.latent[-2:], self.size, strict=True)]
        middle = self.latent[1:-2]
        if self.frames is not None:
            middle = ((shape.frames - 1) // self.frame_step + 1,)
        return replace(
            self,
            image=shape.height,
            width=shape.width,
            frames=None if self.frames is None else shape.frames,
            latent=(self.latent[0], *middle, *cells),
            rows=guidance,
        )

    def pipeline(self) -> Pipeline:
        return Pipeline.chain(*(Module(n, loop=loops) for n, loops in self.chain), name=self.name)

    def with_modules(self, modules: Sequence[str]) -> Kind:
        """This model with *modules* only. Raises `BadInput` where one is left out that must not be, or is not its."""
        self._check_modules(modules)
        return self._only(modules)

    def profiled_without(self, left_out: Sequence[str]) -> Kind:
        """This model without some modules, as it is profiled: with one loop, whichever it is. Raises `BadInput`."""
        kept = [m for m in self.modules if m not in left_out]
        if len(self.loops) == 1:
            return self.with_modules(kept)
        if len([m for m in self.loops if m in kept]) != 1:
            what = f"{self.name} loops in {' and '.join(self.loops)}, and a profile is of one of them"
            right = " or ".join(f"--without {m}" for m in self.loops)
            raise BadInput(what, where="--without", right=right)
        rest = [m for m in self.modules if m in kept or m in self.loops]
        self._check_modules(rest)
        return self._only(kept)

    def _check_modules(self, modules: Sequence[str]) -> None:
        lacks = [m for m in self.modules if m not in modules and m not in self.optional]
        if lacks or [m for m in self.modules if m in modules] != list(modules):
            may = f" ({', '.join(self.optional)} may be left out)" if self.optional else ""
            what = f"{self.name} cannot be served as {' -> '.join(modules)}"
            raise BadInput(what, right=f"{' -> '.join(self.modules)}{may}")

    def _only(self, modules: Sequence[str]) -> Kind:
        if tuple(modules) == self.modules:
            return self
        groups = ([m for m in group if m in modules] for group in self.placement)
        return replace(
            self,
            chain=tuple((m, loops) for m, loops in self.chain if m in modules),
            groups=tuple(tuple(group) for group in groups if group),
            networks={m: config for m, config in self.networks.items() if m in modules},
            fixed=tuple(m for m in self.fixed if m in modules),
        )

    def tokens(self, latent: Sequence[int]) -> int:
        """Patches of 2 x 2 of a latent of this shape, by which a dynamic shift goes."""
        return math.prod(latent[1:-2]) * (latent[-2] // 2) * (latent[-1] // 2)
