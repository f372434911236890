"""A pipeline of language models and tools, served for real: each model by vLLM in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput, Recorder, Worker
from servetwin.core.records import RunFolder
from servetwin.core.token_worker import TokenWorker

from . import build
from .backend import Plan
from .config import Experiment
from .engines import is_engine, prepare
from .graph import make_router, real_tools
from .llmspec import TokenSLOSpec

if TYPE_CHECKING:
    from servetwin.real.agents import EngineProcess
    from servetwin.real.server import Report


class AgentsBackend:
    """Serves experiments whose stages are language models and tools. *options* are of
    `servetwin.real.vllm_engine.EngineOptions`, for all engines alike.

    Engines stay where they are from one run to the next with the same deployment; `close` ends them.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.engines: dict[str, EngineProcess] = {}
        self._of: dict[str, Any] = {}

    def run(self, experiment: Experiment, folder: Path | None = None) -> Report:
        """Serve *experiment*; with *folder*, leave its records there. Raises as `servetwin.real.agents.serve`."""
        from servetwin.real.agents import serve

        plan = Plan(experiment, diffusion=False)
        stages, workers, wiring = plan.system()
        ours = [self._worker(w) for w in workers]
        wiring["router"] = make_router(plan.experiment, ours)
        tools = real_tools(plan.experiment)
        self.start(plan.experiment)
        recorder: Recorder = Recorder()
        if folder is not None:
            recorder = build.folder_for(experiment, folder, {**build.describe(experiment), "kind": "real"})
        prepare(recorder, plan.experiment, ours)
        complete = False
        try:
            after = experiment.system.stop_after
            report = serve(
                stages, ours, plan.requests, self.engines, recorder, tools=tools, stop_after=after, **wiring
            )
            complete = True
        finally:
            if isinstance(recorder, RunFolder):
                recorder.close(complete=complete)
        return report

    def _worker(self, worker: Worker) -> Worker:
        from servetwin.real.agents import EngineWorker

        if not isinstance(worker, TokenWorker):
            return worker
        return EngineWorker(worker.stage, worker.policy, worker.view, device=worker.device)

    def start(self, experiment: Experiment) -> None:
        """Start an engine for each LLM worker that has none, all at once. Raises `ServeTwinError`."""
        from servetwin.real.agents import EngineProcess, EngineSetup

        wanted = {}
        for spec in experiment.deployment.workers:
            if is_engine(experiment, spec):
                wanted[spec.name or spec.modules[0]] = EngineSetup(
                    {**self.options, "max_sequences": spec.limit}, self._settings(experiment, spec)
                )
            elif spec.threads is None:
                what = f"{'+'.join(spec.modules)} is neither a language model nor a tool"
                raise BadInput(what, where="deployment.workers", right="a pipeline of those")
        for name in [n for n in self.engines if wanted.get(n) != self._of.get(n)]:
            self.engines.pop(name).close()
        missing = [name for name in wanted if name not in self.engines]
        for name in missing:
            self.engines[name], self._of[name] = EngineProcess(wanted[name]), wanted[name]
        for name in missing:
            self.engines[name].ready()

    def _settings(self, experiment: Experiment, spec: Any) -> dict[str, Any]:
        policy, slo = build.policy_of(experiment, spec), experiment.slo
        scales = None
        if isinstance(slo, TokenSLOSpec) and slo.prefill is not None:
            scales = f"{slo.prefill}+{slo.decode}"
        profile = experiment.deployment.devices[spec.device]
        return {"policy": policy.name, "params": policy.params, "profile": profile, "slo": scales}

    def close(self) -> None:
        """End all engines."""
        for engine in self.engines.values():
            engine.close()
        self.engines.clear()
