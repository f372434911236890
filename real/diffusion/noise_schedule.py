"""Noise schedules as tables: what a denoising step does with its prediction, for each step of a request.

All samplers here are linear in the latents *x*, the network's output *e* and, with DPM-Solver++, the data *d* that
the step before has predicted, so a step of each is::

    e = network(scale * x, timestep)
    x, d = keep * x + add * e + back * d, own * x + theirs * e

and requests at different steps, of different step counts, can share a batch: each brings the row of its step. What
the network predicts (noise, v, or the velocity of a flow) is in the coefficients.

>>> from servetwin.real.diffusion.kind import Sampling
>>> table = steps_table("ddim", 4, Sampling(betas=(0.00085, 0.012, "scaled_linear")))
>>> [int(t) for t in table.rows[:, 0]], table.first
([751, 501, 251, 1], 1.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from servetwin.core import BadInput

from .kind import Sampling

#: Training steps of all models here.
TRAINED = 1000

#: Columns of a row: timestep, scale, keep, add, back, own, theirs.
COLUMNS = 7

#: Samplers that need what the step before has predicted.
TWO_STEPS = ("dpm++2m",)


@dataclass(frozen=True)
class StepsTable:
    """*rows* (steps x (timestep, scale, keep, add, back, own, theirs)) in float32, and the scale *first* of the
    initial noise."""

    rows: np.ndarray
    first: float


@lru_cache(maxsize=4096)
def steps_table(sampler: str, steps: int, sampling: Sampling, tokens: int = 0) -> StepsTable:
    """The table of a request of *steps* steps, as diffusers' DDIMScheduler (eta 0), EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler and DPMSolverMultistepScheduler (order 2, midpoint, last sigma 0) go.

    *tokens* are those of the image, for a flow whose shift depends on them. Raises `BadInput`.
    """
    if not 1 <= steps <= TRAINED:
        raise BadInput(f"{steps} denoising steps", right=f"1 to {TRAINED}")
    if sampler not in sampling.samplers:
        raise BadInput(f"unknown scheduler {sampler!r}", right=" or ".join(sampling.samplers))
    if sampling.prediction == "flow":
        shift = _shift(sampling, tokens)
        return _flow_euler(steps, sampling, shift) if sampler == "flow-euler" else _flow_solver(steps, shift)
    low, high, spacing = sampling.betas
    if spacing == "scaled_linear":
        b = np.linspace(low**0.5, high**0.5, TRAINED, dtype=np.float32) ** 2
    else:
        b = np.linspace(low, high, TRAINED, dtype=np.float32)
    alphas = np.cumprod(1.0 - b.astype(np.float64))
    velocity = sampling.prediction == "v_prediction"
    scaled = spacing == "scaled_linear"
    if sampler == "ddim":
        return _ddim(steps, alphas, scaled=scaled, velocity=velocity)
    offset = int(scaled) if sampling.leading else None
    if sampler == "euler":
        return _euler(steps, alphas, offset, velocity=velocity)
    return _solver(steps, alphas, offset, velocity=velocity)


def _ddim(steps: int, alphas: np.ndarray, *, scaled: bool, velocity: bool) -> StepsTable:
    """Latent models trained on scaled_linear betas start one step later and end at the first alpha, not at 1."""
    stride = TRAINED // steps
    timesteps = np.arange(steps)[::-1] * stride + (1 if scaled and steps < TRAINED else 0)
    before = timesteps - stride
    a = alphas[timesteps]
    a_before = np.where(before >= 0, alphas[np.maximum(before, 0)], alphas[0] if scaled else 1.0)
    if velocity:
        signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
        signal_before, noise_before = np.sqrt(a_before), np.sqrt(1.0 - a_before)
        keep = signal_before * signal + noise_before * noise
        add = noise_before * signal - signal_before * noise
    else:
        keep = np.sqrt(a_before / a)
        add = np.sqrt(1.0 - a_before) - keep * np.sqrt(1.0 - a)
    return _table(timesteps, np.ones(steps), keep, add, 1.0)


def _sigmas(timesteps: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    return np.asarray(np.interp(timesteps, np.arange(TRAINED), np.sqrt((1.0 - alphas) / alphas)))


def _euler(steps: int, alphas: np.ndarray, offset: int | None, *, velocity: bool) -> StepsTable:
    timesteps: np.ndarray
    if offset is None:
        timesteps = np.linspace(0, TRAINED - 1, steps)[::-1]
    else:
        timesteps = np.arange(steps)[::-1] * (TRAINED // steps) + float(offset)
    sigmas = _sigmas(timesteps, alphas)
    step = np.append(sigmas[1:], 0.0) - sigmas
    scale = 1.0 / np.sqrt(sigmas**2 + 1.0)
    highest = float(sigmas.max())
    first = highest if offset is None else float(np.sqrt(highest**2 + 1.0))
    if velocity:
        return _table(timesteps, scale, 1.0 + step * sigmas * scale**2, step * scale, first)
    return _table(timesteps, scale, np.ones(steps), step, first)


def _solver(steps: int, alphas: np.ndarray, offset: int | None, *, velocity: bool) -> StepsTable:
    """DPM-Solver++ (2M): Lu et al. 2022, 2211.01095, algorithm 2."""
    timesteps: np.ndarray
    if offset is None:
        timesteps = np.linspace(0, TRAINED - 1, steps + 1).round()[::-1][:-1]
    else:
        timesteps = (np.arange(steps + 1) * (TRAINED // (steps + 1)))[::-1][:-1] + float(offset)
    # As diffusers, which takes single precision for these.
    spread = _sigmas(timesteps, alphas).astype(np.float32).astype(np.float64)
    signal = 1.0 / np.sqrt(spread**2 + 1.0)
    noise = spread * signal
    own, theirs = (signal, -noise) if velocity else (1.0 / signal, -noise / signal)
    return _two_steps(timesteps, np.append(signal, 1.0), np.append(noise, 0.0), own, theirs)


def _shift(sampling: Sampling, tokens: int) -> float:
    if sampling.dynamic is None:
        return sampling.shift
    if tokens < 1:
        raise BadInput("the shift of this model goes by the tokens of an image", right="their number")
    low, high, fewest, most = sampling.dynamic
    slope = (high - low) / (most - fewest)
    return float(np.exp(tokens * slope + low - slope * fewest))


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    moved: np.ndarray = shift * sigmas / (1.0 + (shift - 1.0) * sigmas)
    return moved


def _flow_euler(steps: int, sampling: Sampling, shift: float) -> StepsTable:
    # Pipelines with a dynamic shift give sigmas from 1 to 1 / steps; others go from the first to the last of
    # training, shifted once there and once more here, as diffusers does.
    least = 1.0 / steps if sampling.dynamic is not None else float(_shifted(np.array(1.0 / TRAINED), shift))
    sigmas = _shifted(np.linspace(1.0, least, steps), shift)
    step = np.append(sigmas[1:], 0.0) - sigmas
    return _table(sigmas * TRAINED, np.ones(steps), np.ones(steps), step, 1.0)


def _flow_solver(steps: int, shift: float) -> StepsTable:
    """DPM-Solver++ (2M) of a flow: the signal is 1 - sigma, and the data x - sigma * velocity."""
    sigmas = _shifted(1.0 - np.linspace(1.0, 1.0 / TRAINED, steps + 1), shift)[::-1][:-1]
    timesteps = np.floor(sigmas * TRAINED)  # whole ones: so diffusers
    return _two_steps(timesteps, np.append(1.0 - sigmas, 1.0), np.append(sigmas, 0.0), np.ones(steps), -sigmas)


def _two_steps(
    timesteps: np.ndarray, signal: np.ndarray, noise: np.ndarray, own: np.ndarray, theirs: np.ndarray
) -> StepsTable:
    """Steps from (signal, noise) of each to that of the next; the first and the last are of order one."""
    steps = len(timesteps)
    with np.errstate(divide="ignore"):
        half_log = np.log(signal) - np.log(noise)  # of the signal-to-noise ratio; infinite at the end
    keep, add, back = np.empty(steps), np.empty(steps), np.zeros(steps)
    for i in range(steps):
        h = half_log[i + 1] - half_log[i]
        gain = signal[i + 1] * -np.expm1(-h)
        now = gain
        before = half_log[i] - half_log[i - 1] if i else 0.0
        if i < steps - 1 and h and before:  # of so many steps some are of no length
            ratio = before / h
            back[i] = -0.5 * gain / ratio
            now = gain - back[i]
        keep[i] = noise[i + 1] / noise[i] + now * own[i]
        add[i] = now * theirs[i]
    return _table(timesteps, np.ones(steps), keep, add, 1.0, back, own, theirs)


def begun_anew(rows: np.ndarray) -> np.ndarray:
    """The *rows* of a `StepsTable` from one in the middle on, for a network that has predicted nothing yet: the first
    is of order one, as it is with a scheduler of its own in diffusers."""
    found = rows.copy()
    keep, add, back, own, theirs = rows[0, 2:]
    found[0, 2:5] = keep + back * own, add + back * theirs, 0.0
    return found


def _table(
    t: np.ndarray, scale: np.ndarray, keep: np.ndarray, add: np.ndarray, first: float, *two: np.ndarray
) -> StepsTable:
    more = two or (np.zeros(len(t)),) * 3
    rows = np.ascontiguousarray(np.stack([t, scale, keep, add, *more], axis=1), dtype=np.float32)
    rows.setflags(write=False)
    return StepsTable(rows, first)
