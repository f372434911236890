"""Steps that a policy leaves out, for real: fewer from the start, or with the last prediction again.

The images are those of diffusers' pipeline with that number of steps, and with a network that gives its last output
again.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from servetwin.core import BatchWorker, Decision, Policy, Request, WorkerView
from servetwin.core.invariants.checker import check_records
from servetwin.core.pipeline import Module, Pipeline, StepActions
from servetwin.core.serving.acting_worker import ActingWorker
from servetwin.experiments.assembly.build import run
from servetwin.experiments.backends.diffusion import Backend, Setup
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_runs import compare
from servetwin.real import Options, Server
from servetwin.real.diffusion.profiling.reused_steps import measured_ratios, with_reuse
from test_models import PIPELINES

PROFILES = Path(__file__).parents[3] / "profiles" / "data"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ACTIONS = StepActions(quality=((0.25, 0.5), (1.0, 1.0)), reuse=True)
ASKED = 8


class Acts(Policy):
    """Gives each request the steps that *steps* says by its id, and skips those steps of it that *skips* has."""

    def __init__(self, steps=None, skips=None):
        self.given, self.skips = steps or {}, skips or {}

    def decide(self, view, now):
        run = [*view.running, *view.waiting][: view.limit]
        if view.stage.actions is None:
            return Decision(run)
        steps = {t: self.given[t.id] for t in run if t in view.waiting and t.id in self.given}
        reuse = [t for t in run if t in view.running and t.iterations - t.left in self.skips.get(t.id, ())]
        return Decision(run, steps=steps, reuse=reuse)


def images(server, policy, count, limit=3):
    """The images of *count* requests, which come at once; and what the summary says."""
    kind = server.kind
    modules = [Module(n, loop=loops, actions=ACTIONS if loops else None) for n, loops in kind.chain]
    stages = Pipeline.chain(*modules).stages(kind.placement)
    workers = []
    for stage in stages:
        view = WorkerView(stage, lambda m, n: 0.001, limit=limit)
        workers.append((BatchWorker if stage.actions is None else ActingWorker)(stage, policy, view))
    made = {}
    report = server.serve(
        stages,
        workers,
        [Request(i, 0.0, 600.0, {kind.loop: ASKED}) for i in range(count)],
        sink=lambda number, image: made.setdefault(number, image.clone()),
    )
    assert report.summary.met == count
    return made


@torch.no_grad()
def wanted(server, number, steps, skips=()):
    """The image of diffusers' pipeline; in steps of *skips* the network gives what it gave last."""
    slots = server.device_slots("gpu0")
    name = server.kind.name
    pipeline, more = PIPELINES[name](slots.model.networks, slots.model.inputs[number])
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.empty(1, *slots.kind.latent).normal_(generator=torch.Generator().manual_seed(number))
    network = slots.model.networks[server.kind.loop]
    forward, calls, last = network.forward, [], []

    def again(*args, **options):
        step = len(calls)
        calls.append(step)
        if step not in skips:
            last[:] = [forward(*args, **options)]
        return last[0]

    network.forward = again
    try:
        height, width = slots.kind.size
        made = pipeline(
            "a prompt", num_inference_steps=steps, latents=noise, height=height, width=width, output_type="pt", **more
        )
    finally:
        network.forward = forward
    assert len(calls) == steps
    return made.images[0] * 255


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl"])
def test_fewer_steps_and_steps_again_give_the_images_of_the_pipeline(name):
    """In one batch: a request with all steps, one with fewer, one that skips some, one that does both."""
    server = Server(name, Options(device="cpu", slots=8, reuse=True))
    made = images(server, Acts({1: 5, 3: 6}, {2: {2, 3, 6}, 3: {4}}), 4)
    for number, steps, skips in ((0, 8, ()), (1, 5, ()), (2, 8, (2, 3, 6)), (3, 6, (4,))):
        off = (made[number].float() - wanted(server, number, steps, skips)).abs().max()
        assert off <= 1.01, number
    whole = images(server, Acts(), 4)
    assert torch.equal(whole[0], made[0])
    for number in (1, 2, 3):  # what was left out can be seen
        assert (whole[number].float() - made[number].float()).abs().max() > 2


def test_in_processes_and_with_a_sampler_of_two_steps():
    options = {"device": "cpu", "slots": 8, "reuse": True, "scheduler": "dpm++2m"}
    policy = {"steps": {1: 5}, "skips": {0: {3, 5}, 1: {2}}}
    here = images(Server("tiny-dit", Options(**options)), Acts(**policy), 2)
    apart = images(Server("tiny-dit", Options(**options, processes=True)), Acts(**policy), 2)
    assert all((here[i].int() - apart[i].int()).abs().max() <= 1 for i in here)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """That of a tiny DiT that comes along, with what a reused step takes here."""
    server = Server("tiny-dit", Options(device="cpu", slots=8, reuse=True))
    ratios = measured_ratios(server, 2)
    assert sorted(ratios) == [1, 2]
    assert all(0.0 < ratio < 1.0 and count > 20 for ratio, count in ratios.values())  # the network is most of a step
    content = with_reuse(yaml.safe_load((PROFILES / "cpu" / "tiny-dit.yaml").read_text()), "dit", ratios)
    path = tmp_path_factory.mktemp("profiles") / "tiny-dit.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("policy", ["fewer-steps", "reuse-steps"])
def test_both_worlds_keep_the_same_books(policy, profile, tmp_path):
    actions = {"quality": [[0.4, 0.7], [1.0, 1.0]], "source": "a test", "reuse": True}
    experiment = load(
        {
            "name": "actions",
            "pipeline": {"modules": {"dit": {"loop": True, "actions": actions}, "vae": {}}},
            "workload": {
                "requests": 24,
                "arrivals": {"process": "poisson", "rate": 400.0},
                "steps": {"dit": {"draw": "uniform", "low": 10, "high": 16}},
            },
            "slo": {"factor": 6.0},
            "policy": {"name": policy, "params": {"drop_late": False} if policy == "reuse-steps" else {}},
            "deployment": {
                "devices": {"gpu0": str(profile)},
                "workers": [{"modules": [m], "device": "gpu0", "limit": 2} for m in ("dit", "vae")],
            },
            "time": {"unmeasured": "shared"},
        }
    )
    backend = Backend(Setup(devices=("cpu",), foreign=True))
    summaries = [
        backend.run(experiment, tmp_path / "real").summary.as_dict(),
        run(experiment, tmp_path / "simulated").as_dict(),
    ]
    for world, summary in zip(("real", "simulated"), summaries, strict=True):
        check_records(tmp_path / world)
        lines = [json.loads(line) for line in (tmp_path / world / "requests.jsonl").read_text().splitlines()]
        stays = [record["stages"][0] for record in lines if record["finished"] is not None]
        skipped = sum(stay["steps_skipped"] for stay in stays)
        assert skipped == summary["quality"]["steps_skipped"]
        assert skipped > 0 or (world, policy) == ("real", "fewer-steps")  # if this machine is quick enough
        assert summary["quality"].keys() == summaries[0]["quality"].keys()
    assert json.loads((tmp_path / "real" / "meta.json").read_text())["options"]["reuse"] is True
    assert compare(tmp_path / "simulated", tmp_path / "real")["attainment"]
