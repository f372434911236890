"""vllm-omni's own step scheduler under our policies, on the CPU: who takes which step is a simulation's decision."""

import asyncio
import json

import pytest
import torch
from servetwin.core import BadInput, Decision, Policy, Recorder, ServeTwinError
from servetwin.experiments.assembly import build
from servetwin.experiments.registry import policy_registry
from servetwin.experiments.spec.loading import load
from servetwin.real.omni.scheduler import PolicyStepScheduler
from vllm_omni.diffusion.data import DiffusionOutput, OmniDiffusionConfig
from vllm_omni.diffusion.diffusion_engine import DiffusionEngine
from vllm_omni.diffusion.executor.abstract import DiffusionExecutor
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched import DiffusionRequestStatus, StepScheduler
from vllm_omni.diffusion.worker.utils import BatchRunnerOutput, RunnerOutput
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

PROFILE = "synthetic/sdxl-shapes"


def request(name, steps, size=(1024, 1024), guidance=5.0, **said):
    return OmniDiffusionRequest(
        prompt=name,
        request_id=name,
        sampling_params=OmniDiffusionSamplingParams(
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=int(name),
            extra_args={"servetwin": said} if said else {},
        ),
    )


class Driven:
    """A scheduler in the hands of what does as vllm-omni's engine and workers do, on a clock that is set."""

    def __init__(self, policy, limit=4, **more):
        self.now = 0.0
        self.scheduler = PolicyStepScheduler(policy, PROFILE, clock=lambda: self.now, **more)
        self.scheduler.initialize(OmniDiffusionConfig(max_num_seqs=limit, step_execution=True))
        self.steps = {}
        self.ended = {}

    def add(self, made):
        self.steps[self.scheduler.add_request(made)] = [0, made.sampling_params.num_inference_steps]

    def schedule(self):
        output = self.scheduler.schedule()
        if output.is_empty:
            self.take(output.finished_req_ids)
        return output

    def update(self, output):
        outputs = []
        for name in output.scheduled_request_ids:
            self.steps[name][0] += 1
            step, all_of_them = self.steps[name]
            result = DiffusionOutput(output=name) if step == all_of_them else None
            outputs.append(RunnerOutput(name, step, step == all_of_them, result))
        self.take(self.scheduler.update_from_output(output, BatchRunnerOutput.from_list(outputs)))

    def take(self, names):
        for name in names:
            if self.scheduler.get_request_state(name) is not None:
                self.ended[name] = self.scheduler.pop_request_state(name).status

    def play(self, step=0.05):
        """Steps of so many seconds until nobody is left; who took each of them."""
        taken = []
        while self.scheduler.has_requests():
            output = self.schedule()
            if output.scheduled_request_ids:
                taken.append(sorted(map(int, output.scheduled_request_ids)))
                self.now += step
                self.update(output)
            else:
                self.now += step
        return taken


def simulated(policy, folder):
    """The batches, one for each step, and the requests of a simulation of several shapes on one worker."""
    settings = {
        "requests": 60,
        "rate": 1.2,
        "policy": policy,
        "deployment.workers.0.limit": 4,
        "workload.shape": {"draw": "choice", "values": ["512x512", "1024x1024"], "weights": [2, 1]},
        "time.transport": False,
    }
    build.run(load("sdxl-shapes-synthetic", [*settings.items()]), folder)
    batches, requests = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("batches", "requests")
    )
    return batches, requests


@pytest.mark.parametrize("policy", ["edf", "neustream", "slack-batch", "fcfs", "srpt"])
def test_who_takes_which_step_is_what_the_simulation_decides(policy, tmp_path):
    batches, requests = simulated(policy, tmp_path / "run")
    experiment = load("sdxl-shapes-synthetic")
    driven = Driven(lambda: policy_registry.make(policy, {}), slo=experiment.slo.factor)
    coming = sorted(requests, key=lambda r: r["arrival"])
    for batch in batches:
        ends = batch.get("ends") or [batch["end"]] * batch["iterations"]
        for start, end in zip([batch["start"], *ends], ends, strict=False):
            while coming and coming[0]["arrival"] <= start:
                row = coming.pop(0)
                driven.now = row["arrival"]
                size = row["shape"]["height"], row["shape"]["width"]
                driven.add(request(str(row["id"]), row["work"]["unet"], size, slo=row["deadline"] - row["arrival"]))
            driven.now = start
            output = driven.schedule()
            left = [str(i) for i in batch["requests"] if driven.steps[str(i)][0] < driven.steps[str(i)][1]]
            assert sorted(output.scheduled_request_ids) == sorted(left), batch
            driven.now = end
            driven.update(output)
    driven.play()
    dropped = {str(r["id"]) for r in requests if r["outcome"] == "dropped"}
    assert dropped == {n for n, status in driven.ended.items() if status == DiffusionRequestStatus.FINISHED_ABORTED}
    assert len(driven.ended) == len(requests)
    assert len({len(batch["requests"]) for batch in batches}) > 1


def test_batches_are_of_one_key_of_vllm_omni():
    """Equal sizes are not enough: vllm-omni computes requests of one guidance scale together."""
    driven = Driven("edf", slo=3.0)
    for i in range(6):
        driven.add(request(str(i), 4, guidance=5.0 if i % 2 else 7.5))
    taken = driven.play()
    assert [0, 2, 4] in taken
    assert all(len({i % 2 for i in ids}) == 1 for ids in taken)


def test_who_is_aborted_leaves_its_batch():
    driven = Driven("clockwork", slo=30.0)
    for i in range(3):
        driven.add(request(str(i), 4))
    driven.update(driven.schedule())
    driven.scheduler.finish_requests(["0", "1", "2"], DiffusionRequestStatus.FINISHED_ABORTED)
    driven.add(request("3", 2))
    assert driven.play()[-2:] == [[3], [3]]
    assert driven.ended["3"] == DiffusionRequestStatus.FINISHED_COMPLETED
    assert driven.ended["0"] == DiffusionRequestStatus.FINISHED_ABORTED


def test_a_policy_at_fault_ends_the_run_by_name():
    class Wrong(Policy):
        def decide(self, view, now):
            return Decision([*view.waiting] * 2)

    driven = Driven(Wrong, slo=3.0)
    driven.add(request("0", 4))
    driven.schedule()
    assert driven.ended == {"0": DiffusionRequestStatus.FINISHED_ERROR}
    with pytest.raises(ServeTwinError, match=r"the policy broke the run: .*Wrong.* twice"):
        driven.add(request("1", 4))


@pytest.mark.parametrize(
    ("said", "made", "message"),
    [
        ({}, {}, r"its SLO is None.*seconds, or slo="),
        ({"slo": 1.0, "prio": 2}, {}, r"unknown key 'prio'.*slo, priority, tenant, weight, class"),
        ({"slo": 1.0}, {"size": (4096, 4096)}, r"nobody measured 4096x4096"),
    ],
)
def test_what_a_request_says_wrong_is_refused(said, made, message):
    driven = Driven("edf")
    with pytest.raises(BadInput, match=message):
        driven.add(request("0", 4, **made, **said))
    assert not driven.scheduler.has_requests()


class OnCPU(DiffusionExecutor):
    """Computes what vllm-omni's engine asks for: every step a convolution of the latents, batched."""

    def _init_executor(self):
        torch.manual_seed(0)
        self.network = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.latents, self.left, self.sizes = {}, {}, []

    def execute_step(self, output):
        for new in output.scheduled_new_reqs:
            sampling = new.req.sampling_params
            generator = torch.Generator().manual_seed(sampling.seed)
            self.latents[new.request_id] = torch.randn(4, 8, 8, generator=generator)
            self.left[new.request_id] = sampling.num_inference_steps
        names = output.scheduled_request_ids
        self.sizes.append(len(names))
        with torch.no_grad():
            moved = self.network(torch.stack([self.latents[name] for name in names]))
        outputs = []
        for name, latent in zip(names, moved, strict=True):
            self.latents[name] = latent
            self.left[name] -= 1
            over = not self.left[name]
            outputs.append(RunnerOutput(name, 0, over, DiffusionOutput(output=latent) if over else None))
        return BatchRunnerOutput.from_list(outputs)

    execute_request = execute_batch = execute_step
    is_dead = False

    def collective_rpc(self, method, *args, **more):
        return None

    def check_health(self):
        pass

    def shutdown(self):
        pass


def test_in_vllm_omnis_engine():
    """Its loop, its outputs, and its streams, under a policy of ours: what comes out is what comes out alone."""

    def served(scheduler, together):
        config = OmniDiffusionConfig(
            model_class_name="none", max_num_seqs=4, step_execution=True, distributed_executor_backend=OnCPU
        )
        engine = DiffusionEngine(config, scheduler=scheduler)
        names = [str(i) for i in range(8)]

        async def one(name):
            made = request(name, 3 + int(name), slo=100.0)
            if scheduler is None:
                made.sampling_params.extra_args.clear()
            return [output async for output in engine.step_streaming(made)][-1]

        async def all_of_them():
            if together:
                return await asyncio.gather(*map(one, names))
            return [await one(name) for name in names]

        try:
            assert len(asyncio.run(asyncio.wait_for(all_of_them(), 60.0))) == len(names)
            return engine.executor
        finally:
            engine.close()

    recorder = Recorder()
    mine = served(PolicyStepScheduler("neustream", PROFILE, slo=50.0, recorder=recorder), True)
    alone = served(StepScheduler(), False)
    assert max(mine.sizes) > max(alone.sizes) == 1
    assert recorder.summary.requests == len(mine.latents) == 8
    for name, latent in alone.latents.items():
        torch.testing.assert_close(mine.latents[name], latent)
