"""One experiment in both worlds: the same pipeline, policies and requests, served for real and simulated."""

from __future__ import annotations

from functools import cache

import numpy as np
from servetwin.core import BatchWorker, FactorSLO, Recorder, Request, ServingLoop, Summary, WorkerView
from servetwin.core.serving.client import play
from servetwin.policies.diffusion.clockwork import Clockwork
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.profiles import Profile
from servetwin.profiles.schema import ProfileFile
from servetwin.real import Options, Server, take_profile
from servetwin.sim.measured import TimeOptions, measured_executor

LIMIT = 3
FACTOR = 4.0
POLICIES = {"neustream": NeuStream, "clockwork": Clockwork, "edf": EDF, "fcfs": FCFS}


class Twin:
    """A model on a *server* (None: it is only simulated) and a *profile* of it, for batches of up to *limit*."""

    def __init__(self, server, profile, limit, steps, kind=None):
        self.server = server
        self.kind = kind or server.kind
        self.limit = limit
        self.steps = steps  # the fewest and the most that a request asks for
        self.profile = profile
        self.estimate = profile.estimate()
        self.slo = FactorSLO(FACTOR, profile.solo())

    def system(self, policy):
        """Fresh stages and workers; Clockwork has one worker for the whole pipeline."""
        whole = policy == "clockwork"
        stages = self.kind.pipeline().stages([list(self.kind.modules)] if whole else self.kind.placement)
        return stages, [
            BatchWorker(s, POLICIES[policy](), WorkerView(s, self.estimate, limit=self.limit, slo_factor=FACTOR))
            for s in stages
        ]

    def requests(self, load, count=20, seed=0):
        """Poisson arrivals at *load* times what the device does one by one."""
        return self._requests(load / self.slo.seconds({self.kind.loop: sum(self.steps) // 2}) * FACTOR, count, seed)

    def arrivals(self, share, count, seed):
        """Poisson arrivals at *share* of what the loop holds at its best batch size."""
        best = max(n / self.profile.table(self.kind.loop, "measured")(n) for n in range(1, self.limit + 1))
        return self._requests(share * best / (sum(self.steps) / 2), count, seed)

    def _requests(self, rate, count, seed):
        rng = np.random.default_rng(seed)
        steps = rng.integers(self.steps[0], self.steps[1] + 1, count)
        due = np.cumsum(rng.exponential(1.0 / rate, count))
        works = [{self.kind.loop: int(n)} for n in steps]
        return [Request(i, float(due[i]), self.slo.seconds(work), work) for i, work in enumerate(works)]

    def serve(self, policy, requests, recorder=None, **options):
        stages, workers = self.system(policy)
        return self.server.serve(stages, workers, requests, recorder, **options)

    def simulate(self, policy, requests, stop_after=None) -> Summary:
        stages, workers = self.system(policy)
        executor = measured_executor({"gpu0": self.profile}, workers, TimeOptions(noise=False))
        recorder = Recorder()
        loop = ServingLoop(stages, workers, executor, recorder)
        play(loop, iter(requests))
        if stop_after is not None:
            executor.call_at(requests[-1].arrival + stop_after, loop.stop)
        executor.run_until_idle()
        return recorder.summary


#: What was heard of the progress of `measured`, by model.
HEARD: dict[str, list[tuple[str, int, int]]] = {}


def brief_profile(server, progress=None):
    """The content of a profile with what a simulation needs, measured in seconds; *progress* hears how far it is."""
    more = {"limit": LIMIT, "seconds": 0.05, "brief": True, "progress": progress}
    return take_profile(server, f"cpu/{server.kind.name}", **more)


@cache
def measured(name):
    """A tiny model on the CPU and the content of the profile just taken of it; the same for all tests, since that
    takes seconds.
    """
    server = Server(name, Options(device="cpu"))
    return server, brief_profile(server, lambda *told: HEARD.setdefault(name, []).append(told))


@cache
def twin_of(name):
    """A tiny model with the profile of `measured`.

    Requests have so many steps that they take 80 ms alone: their SLO is then well above the hiccups of a busy host.
    """
    server, content = measured(name)
    profile = Profile(ProfileFile.model_validate(content))
    steps = min(max(round(0.08 / profile.estimate()(server.kind.loop, 1)), 8), 120)
    return Twin(server, profile, LIMIT, (steps * 3 // 4, steps * 5 // 4))
