"""A request's result is the same whoever shares its batches, and the same as diffusers' own loop gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from servetwin.core import BadInput, BatchWorker, Request, Task, WorkerView
from servetwin.policies.diffusion.edf import EDF
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.lanes import StreamLane
from servetwin.real.diffusion.models import KINDS, find
from servetwin.real.diffusion.noise_schedule import steps_table
from servetwin.real.diffusion.options import Options

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = ["tiny-sd", "tiny-dit", "tiny-palette"]
CPU = torch.device("cpu")
LIMIT = 4


def slots_of(name, scheduler="ddim", count=8):
    slots = DeviceSlots(find(name), Options(device="cpu", scheduler=scheduler, slots=count), CPU)
    for module in (*slots.kind.modules, *(["output"] if "output" in slots.model.bodies else [])):
        slots.warm(module, LIMIT)
    slots.reset()
    return slots


def arrive(slots, number, steps):
    progress = slots.take(Request(number, 0.0, 1.0, {slots.kind.loop: steps}))
    for module in slots.kind.modules[: slots.kind.modules.index(slots.kind.loop)]:
        slots.once(module, [progress])
    slots.begin(progress, steps)
    return progress


def latents(slots, progress):
    return slots.model.state["latents"][progress.slot].clone()


@torch.no_grad()
def alone(slots, number, steps):
    progress = arrive(slots, number, steps)
    for _ in range(steps):
        slots.step([progress])
    result = latents(slots, progress)
    slots.release(number)
    return result


def close(a, b, scale=1e-5):
    """Equal up to rounding: *scale* times the largest value, in single precision."""
    return float((a - b).abs().max()) <= scale * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_mixed_batches_give_what_each_request_gives_alone(name, scheduler):
    slots = slots_of(name, scheduler)
    wanted = {number: alone(slots, number, steps) for number, steps in enumerate((10, 7, 10, 5))}
    joins = {0: 0, 1: 1, 2: 2, 3: 4}  # request -> the iteration at which it joins
    live, got = {}, {}
    for iteration in range(20):
        for number, at in joins.items():
            if at == iteration:
                live[number] = arrive(slots, number, (10, 7, 10, 5)[number])
        if not live:
            break
        slots.step(list(live.values()))
        for number, progress in list(live.items()):
            if progress.done == len(progress.rows):
                got[number] = latents(slots, progress)
                del live[number]
                slots.release(number)
    assert got.keys() == wanted.keys()
    for number in wanted:
        assert close(got[number], wanted[number])


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_who_is_done_just_stays(name):
    slots = slots_of(name)
    wanted = alone(slots, 0, 3)
    short, long = arrive(slots, 0, 3), arrive(slots, 1, 6)
    for _ in range(6):
        slots.step([short, long])
    assert close(latents(slots, short), wanted)


def schedulers(kind, name):
    low, high, spacing = kind.sampling.betas
    scaled = spacing == "scaled_linear"
    common = {"beta_start": low, "beta_end": high, "beta_schedule": spacing}
    if name == "ddim":
        return DDIMScheduler(
            **common, clip_sample=False, set_alpha_to_one=not scaled, steps_offset=1 if scaled else 0
        )
    return EulerDiscreteScheduler(**common)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_equal_to_the_loop_of_diffusers(name, scheduler):
    """The loop of the pipelines, with a stock scheduler object: scale, predict (guided), step."""
    steps, number = 9, 3
    slots = slots_of(name, scheduler)
    model, kind = slots.model, slots.kind
    progress = arrive(slots, number, steps)
    slot = progress.slot
    stock = schedulers(kind, scheduler)
    stock.set_timesteps(steps)
    generator = torch.Generator().manual_seed(number)
    x = torch.empty(1, *kind.latent).normal_(generator=generator) * stock.init_noise_sigma
    for t in stock.timesteps:
        seen = stock.scale_model_input(x, t)
        if kind.name == "tiny-sd":
            context = torch.cat([model.definition.empty, model.state["embedding"][slot : slot + 1]])
            blind, led = model.networks["unet"](torch.cat([seen] * 2), t, context).sample.chunk(2)
            noise = blind + kind.guidance * (led - blind)
        elif kind.name == "tiny-dit":
            label = model.state["label"][slot : slot + 1]
            noise = model.networks["dit"](seen, timestep=t.reshape(1), class_labels=label).sample[:, :4]
        else:
            condition = model.state["condition"][slot : slot + 1]
            noise = model.networks["unet"](torch.cat([seen, condition], dim=1), t).sample
        x = stock.step(noise, t, x).prev_sample
    for _ in range(steps):
        slots.step([progress])
    assert close(latents(slots, progress), x[0], 1e-4)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("steps", [2, 7, 20, 50, 99, 249, 999])
@pytest.mark.parametrize("name", ["tiny-sd", "tiny-dit"])
def test_the_tables_are_those_of_diffusers(name, scheduler, steps):
    stock = schedulers(find(name), scheduler)
    stock.set_timesteps(steps)
    table = steps_table(scheduler, steps, find(name).sampling)
    np.testing.assert_allclose(table.rows[:, 0], stock.timesteps.numpy(), atol=1e-3)
    assert table.first == pytest.approx(float(stock.init_noise_sigma), rel=1e-5)


def test_impossible_step_counts():
    with pytest.raises(BadInput, match="1 to 1000"):
        steps_table("ddim", 0, find("tiny-sd").sampling)
    with pytest.raises(BadInput, match="ddim or euler"):
        steps_table("heun", 5, find("tiny-sd").sampling)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_images_of_a_batch_equal_those_made_alone(name):
    """All modules, to the byte or one beside it (rounding)."""
    slots = slots_of(name)
    after = {"tiny-sd": ["vae", "safety"], "tiny-dit": ["vae"], "tiny-palette": ["output"]}[slots.kind.name]

    def images(numbers):
        batch = [arrive(slots, n, 4) for n in numbers]
        for _ in range(4):
            slots.step(batch)
        for module in after:
            slots.once(module, batch)
        made = [slots.model.state["image"][p.slot].clone().int() for p in batch]
        for n in numbers:
            slots.release(n)
        return made

    together = images([0, 1, 2])
    for number in range(3):
        assert int((images([number])[0] - together[number]).abs().max()) <= 1
    assert together[0].float().std() > 0


def test_the_safety_checker_decides_as_that_of_diffusers():
    slots = slots_of("tiny-sd")
    model = slots.model
    checker = model.networks["safety"]
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(LIMIT, *model.image_shape, generator=generator).mul(255).to(torch.uint8)
    pixels[:2] //= 4
    thresholds = torch.linspace(-0.3, 0.3, checker.concept_embeds_weights.numel())
    checker.concept_embeds_weights.data.copy_(thresholds)
    with torch.no_grad():
        mean, deviation = model.definition.norm
        seen = torch.nn.functional.interpolate(
            pixels.float(), size=(model.definition.seen,) * 2, mode="bicubic", antialias=True
        )
        seen = (seen.clamp(0, 255) / 255 - mean) / deviation
        for shift in (-1.0, -0.1, 0.0, 0.1, 1.0):
            checker.concept_embeds_weights.data.copy_(thresholds + shift)
            _, found = checker(seen, [np.ones(1) for _ in range(LIMIT)])
            model.state["image"][:LIMIT] = pixels
            rows = slots.runners["safety"].rows()
            rows[:, 0] = np.arange(LIMIT)
            slots.runners["safety"].launch(LIMIT)
            blank = [not bool(image.any()) for image in model.state["image"][:LIMIT]]
            assert blank == found


def test_slots_run_out_with_a_clear_word():
    slots = slots_of("tiny-dit", count=LIMIT)
    for number in range(LIMIT):
        slots.take(Request(number, 0.0, 1.0, {"dit": 3}))
    with pytest.raises(Exception, match="number of slots"):
        slots.take(Request(LIMIT, 0.0, 1.0, {"dit": 3}))
    slots.release(0)
    slots.take(Request(LIMIT, 0.0, 1.0, {"dit": 3}))


@torch.no_grad()
def test_a_request_can_change_its_device():
    """What a transfer between devices copies is all that the rest of the request needs."""
    a, b = slots_of("tiny-sd"), slots_of("tiny-sd")
    wanted = alone(a, 1, 6)
    arrive(b, 0, 6)  # so that the slot there is another
    progress = arrive(a, 1, 6)
    for _ in range(2):
        a.step([progress])
    a.hand_over(1, b)
    moved = b.progress[1]
    for _ in range(4):
        b.step([moved])
    assert close(latents(b, moved), wanted)
    assert 1 not in a.progress


SIZES = {
    "sd15-512": {"unet": 859.5, "vae": 83.7, "clip": 123.1, "safety": 304.0},
    "sd15-256": {"unet": 859.5, "vae": 83.7},
    "dit-s2-256": {"dit": 39.8, "vae": 83.7},
    "dit-xl2-256": {"dit": 749.8},
    "palette-256": {"unet": 61.8},
}


@pytest.mark.parametrize("name", SIZES)
def test_full_sizes(name):
    """Millions of parameters, as published; built without memory."""
    from servetwin.real.diffusion.model_registry import class_of
    from servetwin.real.diffusion.networks import build

    kind, meta = KINDS[name], torch.device("meta")
    definition = class_of(kind)(kind, meta, torch.float32)
    for module, millions in SIZES[name].items():
        if module == "safety":
            continue
        network = build(definition, module, Options(device="cpu"), meta)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3), module


def test_from_a_checkpoint(tmp_path):
    """A folder in diffusers' layout gives the weights that it holds."""
    kind = find("tiny-dit")
    original = slots_of("tiny-dit")
    original.model.networks["dit"].save_pretrained(tmp_path / "transformer")
    original.model.networks["vae"].save_pretrained(tmp_path / "vae")
    copy = DeviceSlots(kind, Options(device="cpu", weights=tmp_path, seed=0, slots=8), CPU)
    for a, b in zip(
        copy.model.networks["dit"].parameters(), original.model.networks["dit"].parameters(), strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(BadInput, match="no such folder"):
        DeviceSlots(find("tiny-sd"), Options(device="cpu", weights=tmp_path), CPU)


def test_a_request_is_prepared_while_it_waits():
    """What a stream's lane does beforehand is what a batch would do: the same slot, input and noise. It leaves the
    last slots to those who begin, and does nothing twice. (Without a GPU there are no streams; the rest is the same.)
    """
    stages = find("tiny-dit").pipeline().stages([["dit"], ["vae"]])
    recorded = []

    def lane_of(slots, stage):
        lane = object.__new__(StreamLane)
        lane.slots, lane.side, lane.awaits = slots, None, False
        lane.worker = BatchWorker(stage, EDF(), WorkerView(stage, lambda module, n: 0.01, limit=2, slo_factor=3.0))
        lane.prepared = SimpleNamespace(record=recorded.append)
        return lane

    def task_of(lane, number):
        return Task(Request(number, 0.0, 9.0, {"dit": 6}), lane.worker.stage, 0.0, lane.worker.place)

    slots, plain = slots_of("tiny-dit", count=4), slots_of("tiny-dit", count=4)
    lane = lane_of(slots, stages[0])
    for number in (0, 1):
        lane.prepare(task_of(lane, number))
        expected = arrive(plain, number, 6)
        known = slots.progress[number]
        assert np.array_equal(known.rows, expected.rows)
        assert torch.equal(latents(slots, known), latents(plain, expected))
        assert torch.equal(slots.model.state["label"], plain.model.state["label"])
    assert lane.awaits
    assert len(recorded) == 2
    lane.prepare(task_of(lane, 0))  # there already
    lane.prepare(task_of(lane, 2))  # two slots are left, and batches are of two
    later = lane_of(slots, stages[1])
    later.prepare(task_of(later, 1))  # a stage without a loop needs nothing
    assert len(recorded) == 2
    assert sorted(slots.progress) == [0, 1]
    assert not later.awaits
