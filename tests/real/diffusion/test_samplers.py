"""Samplers as tables of coefficients: each step is that of diffusers' scheduler, whatever the network predicts."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from servetwin.core import BadInput
from servetwin.real.diffusion.kind import Sampling
from servetwin.real.diffusion.noise_schedule import steps_table

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCALED = (0.00085, 0.012, "scaled_linear")
LINEAR = (1e-4, 0.02, "linear")
FLUX = (0.5, 1.15, 256, 4096)
TOKENS = 1024

CASES = {
    "SD, DDIM": ("ddim", Sampling(betas=SCALED)),
    "SD, DDIM, v": ("ddim", Sampling("v_prediction", SCALED)),
    "DiT, DDIM": ("ddim", Sampling(betas=LINEAR)),
    "SD, Euler": ("euler", Sampling(betas=SCALED)),
    "SD, Euler, v": ("euler", Sampling("v_prediction", SCALED)),
    "SDXL, Euler": ("euler", Sampling(betas=SCALED, leading=True)),
    "SDXL, Euler, v": ("euler", Sampling("v_prediction", SCALED, leading=True)),
    "SD, DPM-Solver++": ("dpm++2m", Sampling(betas=SCALED)),
    "SD, DPM-Solver++, v": ("dpm++2m", Sampling("v_prediction", SCALED)),
    "SDXL, DPM-Solver++": ("dpm++2m", Sampling(betas=SCALED, leading=True)),
    "PixArt, DPM-Solver++": ("dpm++2m", Sampling(betas=LINEAR)),
    "SD3, Euler": ("flow-euler", Sampling("flow", shift=3.0, sampler="flow-euler")),
    "schnell, Euler": ("flow-euler", Sampling("flow", sampler="flow-euler")),
    "FLUX, Euler": ("flow-euler", Sampling("flow", dynamic=FLUX, sampler="flow-euler")),
    "Wan, DPM-Solver++": ("dpm++2m", Sampling("flow", shift=5.0, sampler="flow-euler")),
}


def stock(sampler, sampling, steps):
    """The scheduler of diffusers, set to *steps*."""
    if sampler == "flow-euler":
        if sampling.dynamic is None:
            made = FlowMatchEulerDiscreteScheduler(shift=sampling.shift)
            made.set_timesteps(steps)
            return made
        low, high, fewest, most = sampling.dynamic
        made = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        mu = low + (high - low) * (TOKENS - fewest) / (most - fewest)
        made.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=mu)
        return made
    if sampling.prediction == "flow":
        made = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=sampling.shift
        )
        made.set_timesteps(steps)
        return made
    low, high, spacing = sampling.betas
    scaled = spacing == "scaled_linear"
    common = {"beta_start": low, "beta_end": high, "beta_schedule": spacing, "prediction_type": sampling.prediction}
    leading = {"timestep_spacing": "leading", "steps_offset": int(scaled)} if sampling.leading else {}
    if sampler == "ddim":
        made = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=not scaled, steps_offset=int(scaled))
    else:
        made = (EulerDiscreteScheduler if sampler == "euler" else DPMSolverMultistepScheduler)(**common, **leading)
    made.set_timesteps(steps)
    return made


def network(x, t):
    """Something that is not linear, and depends on the timestep."""
    return torch.tanh(x * 0.7 + float(t) / 1000) - 0.3 * x.roll(1)


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 30])
@pytest.mark.parametrize("case", CASES)
def test_each_step_is_that_of_diffusers(case, steps):
    sampler, sampling = CASES[case]
    scheduler = stock(sampler, sampling, steps)
    table = steps_table(sampler, steps, sampling, TOKENS)
    assert len(table.rows) == len(scheduler.timesteps) == steps
    np.testing.assert_allclose(table.rows[:, 0], scheduler.timesteps.numpy(), atol=2e-3)
    if hasattr(scheduler, "init_noise_sigma"):
        assert table.first == pytest.approx(float(scheduler.init_noise_sigma), rel=2e-5)
    start = torch.randn(1, 64, generator=torch.Generator().manual_seed(3)) * table.first
    theirs, ours, data = start, start, torch.zeros_like(start)
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(theirs, t) if hasattr(scheduler, "scale_model_input") else theirs
        theirs = scheduler.step(network(seen, t), t, theirs, return_dict=False)[0]
        _, scale, keep, add, back, own, now = (float(value) for value in table.rows[i])
        found = network(ours * scale, t)
        ours, data = keep * ours + add * found + back * data, own * ours + now * found
        # Single precision: small steps of many add up.
        assert float((ours - theirs).abs().max()) <= 2e-4 * max(1.0, float(theirs.abs().max())), (case, i)


@pytest.mark.parametrize("case", CASES)
def test_as_many_steps_as_there_are(case):
    """DPM-Solver++ has steps of no length then, after which it cannot look back."""
    sampler, sampling = CASES[case]
    assert np.isfinite(steps_table(sampler, 1000, sampling, TOKENS).rows).all()


def test_only_a_solver_of_order_two_looks_back():
    for sampler, sampling in CASES.values():
        looks = bool(steps_table(sampler, 20, sampling, TOKENS).rows[:, 4].any())
        assert looks == (sampler == "dpm++2m")


@pytest.mark.parametrize(
    ("sampler", "sampling", "right"),
    [
        ("ddim", Sampling("flow", sampler="flow-euler"), "flow-euler or dpm"),
        ("flow-euler", Sampling(), "ddim or euler or dpm"),
    ],
)
def test_a_sampler_of_another_kind_of_model(sampler, sampling, right):
    with pytest.raises(BadInput, match=right):
        sampling.chosen(sampler)
    with pytest.raises(BadInput, match=right):
        steps_table(sampler, 5, sampling)


def test_a_shift_by_tokens_needs_their_number():
    with pytest.raises(BadInput, match="tokens of an image"):
        steps_table("flow-euler", 5, Sampling("flow", dynamic=FLUX, sampler="flow-euler"))
