"""One experiment in both worlds: the same pipeline, policies and requests, served for real and simulated."""

from __future__ import annotations

from functools import cache

import numpy as np
from servetwin.core import FactorSLO, Recorder, Request, ServingLoop, Summary, Worker, WorkerView
from servetwin.core.loop import play
from servetwin.policies.clockwork import Clockwork
from servetwin.policies.edf import EDF
from servetwin.policies.fcfs import FCFS
from servetwin.policies.neustream import NeuStream
from servetwin.profiles import Profile
from servetwin.profiles.schema import ProfileFile
from servetwin.real import Options, Server, take_profile
from servetwin.sim.measured import TimeOptions, measured_executor

LIMIT = 3
FACTOR = 4.0
POLICIES = {"neustream": NeuStream, "clockwork": Clockwork, "edf": EDF, "fcfs": FCFS}


@cache
def twin_of(name):
    """The same for all tests: taking a profile takes seconds."""
    return Twin(name)


class Twin:
    """A tiny model on the CPU, and the profile just taken of it."""

    def __init__(self, name):
        self.server = Server(name, Options(device="cpu"))
        self.kind = self.server.kind
        content = take_profile(self.server, f"cpu/{name}", limit=LIMIT, seconds=0.08, brief=True)
        self.profile = Profile(ProfileFile.model_validate(content))
        self.estimate = self.profile.estimate()
        self.slo = FactorSLO(FACTOR, self.profile.solo())
        # So many steps that a request takes 80 ms alone: its SLO is then well above the hiccups of a busy host.
        self.steps = min(max(round(0.08 / self.estimate(self.kind.loop, 1)), 8), 120)

    def system(self, policy):
        """Fresh stages and workers; Clockwork has one worker for the whole pipeline."""
        whole = policy == "clockwork"
        stages = self.kind.pipeline().stages([list(self.kind.modules)] if whole else self.kind.placement)
        return stages, [
            Worker(s, POLICIES[policy](), WorkerView(s, self.estimate, limit=LIMIT, slo_factor=FACTOR))
            for s in stages
        ]

    def requests(self, load, count=20, seed=0):
        """Poisson arrivals at *load* times what the loop can do one by one."""
        rng = np.random.default_rng(seed)
        steps = rng.integers(self.steps * 3 // 4, self.steps * 5 // 4, count)
        solo = self.slo.seconds({self.kind.loop: self.steps}) / FACTOR
        due = np.cumsum(rng.exponential(solo / load, count))
        works = [{self.kind.loop: int(n)} for n in steps]
        return [Request(i, float(due[i]), self.slo.seconds(work), work) for i, work in enumerate(works)]

    def serve(self, policy, requests, recorder=None, **options):
        stages, workers = self.system(policy)
        return self.server.serve(stages, workers, requests, recorder, **options)

    def simulate(self, policy, requests) -> Summary:
        stages, workers = self.system(policy)
        executor = measured_executor({"gpu0": self.profile}, workers, TimeOptions(noise=False))
        recorder = Recorder()
        play(ServingLoop(stages, workers, executor, recorder), iter(requests))
        executor.run_until_idle()
        return recorder.summary
