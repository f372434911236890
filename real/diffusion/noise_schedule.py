"""Noise schedules as tables: what a denoising step does with its prediction, for each step of a request.

Both samplers are linear in the latents *x* and the predicted noise *e*, so a step of either is::

    e = network(scale * x, timestep)
    x = keep * x + add * e

and requests at different steps, of different step counts, can share a batch: each brings the row of its step.

>>> table = steps_table("ddim", 4, (0.00085, 0.012, "scaled_linear"))
>>> [int(t) for t in table.rows[:, 0]], table.first
([751, 501, 251, 1], 1.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from servetwin.core import BadInput

#: Training steps of all models here.
TRAINED = 1000

#: Columns of a row: timestep, scale, keep, add.
COLUMNS = 4


@dataclass(frozen=True)
class StepsTable:
    """*rows* (steps x (timestep, scale, keep, add)) in float32, and the scale *first* of the initial noise."""

    rows: np.ndarray
    first: float


@lru_cache(maxsize=4096)
def steps_table(scheduler: str, steps: int, betas: tuple[float, float, str]) -> StepsTable:
    """The table of a request of *steps* steps, as diffusers' DDIMScheduler (eta 0) and EulerDiscreteScheduler go."""
    if not 1 <= steps <= TRAINED:
        raise BadInput(f"{steps} denoising steps", right=f"1 to {TRAINED}")
    low, high, spacing = betas
    if spacing == "scaled_linear":
        b = np.linspace(low**0.5, high**0.5, TRAINED, dtype=np.float32) ** 2
    else:
        b = np.linspace(low, high, TRAINED, dtype=np.float32)
    alphas = np.cumprod(1.0 - b.astype(np.float64))
    if scheduler == "ddim":
        return _ddim(steps, alphas, scaled=spacing == "scaled_linear")
    if scheduler == "euler":
        return _euler(steps, alphas)
    raise BadInput(f"unknown scheduler {scheduler!r}", right="ddim or euler")


def _ddim(steps: int, alphas: np.ndarray, *, scaled: bool) -> StepsTable:
    """Latent models trained on scaled_linear betas start one step later and end at the first alpha, not at 1."""
    stride = TRAINED // steps
    timesteps = np.arange(steps)[::-1] * stride + (1 if scaled and steps < TRAINED else 0)
    before = timesteps - stride
    a = alphas[timesteps]
    a_before = np.where(before >= 0, alphas[np.maximum(before, 0)], alphas[0] if scaled else 1.0)
    keep = np.sqrt(a_before / a)
    add = np.sqrt(1.0 - a_before) - keep * np.sqrt(1.0 - a)
    return _table(timesteps, np.ones(steps), keep, add, 1.0)


def _euler(steps: int, alphas: np.ndarray) -> StepsTable:
    timesteps = np.linspace(0, TRAINED - 1, steps)[::-1]
    sigmas = np.interp(timesteps, np.arange(TRAINED), np.sqrt((1.0 - alphas) / alphas))
    after = np.append(sigmas[1:], 0.0)
    scale = 1.0 / np.sqrt(sigmas**2 + 1.0)
    return _table(timesteps, scale, np.ones(steps), after - sigmas, float(sigmas.max()))


def _table(t: np.ndarray, scale: np.ndarray, keep: np.ndarray, add: np.ndarray, first: float) -> StepsTable:
    rows = np.ascontiguousarray(np.stack([t, scale, keep, add], axis=1), dtype=np.float32)
    rows.setflags(write=False)
    return StepsTable(rows, first)
