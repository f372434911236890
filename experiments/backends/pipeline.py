"""A pipeline of language models and tools, served for real: each model by vLLM in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput, Recorder, Worker
from servetwin.core.llm.serving.worker import TokenWorker

from ..assembly import build
from ..assembly.llm_workers import prepare, settings_of
from ..assembly.pipeline import real_tools
from ..provenance.policy_code import as_loaded
from ..registry.remote_policies import Maker, maker_of
from ..spec import loading
from ..spec.experiment import Experiment, WorkerSpec
from ..spec.llm import TokenSLOSpec
from .diffusion import Plan, Say, recording, same_device, write_report
from .vllm import check_limits, require_vllm

if TYPE_CHECKING:
    from servetwin.real.server import Report
    from servetwin.real.vllm.engine_process import EngineProcess


#: Memory for keys and values on a CPU, in bytes: enough for tiny models.
CPU_KV = 16 << 20
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def serves(experiment: Experiment) -> bool:
    """Whether all stages of *experiment* are language models or tools, at least one a language model."""
    workers = experiment.deployment.workers
    engines = [w.modules[0] in experiment.pipeline.llms for w in workers]
    return any(engines) and all(llm or w.threads is not None for llm, w in zip(engines, workers, strict=True))


def run(
    experiment: Experiment, model: str | None, folder: Path | None, say: Say | None = None, *, foreign: bool = False
) -> Report:
    """Serve *experiment* once, each language model as its profile says it was (or all as *model*).

    Raises `BadInput` before anything is started if vLLM is not there, or a profile is of another device than this
    machine's, unless *foreign*.
    """
    check(experiment, foreign=foreign)
    backend = AgentsBackend(model)
    try:
        return backend.run(experiment, folder, say)
    finally:
        backend.close()


def check(experiment: Experiment, *, foreign: bool = False) -> None:
    """Raise `BadInput` unless the engines of *experiment* can be had here."""
    require_vllm()
    import torch
    from servetwin.profiles import load

    actual = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for device, profile in loading.load_profiles(experiment).items():
        profiled = profile.data.device.name
        if not foreign and not same_device(profiled, actual):
            what = f"the profile {profile.name} is of {profiled}, but this machine has {actual}"
            raise BadInput(what, where=f"deployment.devices.{device}", right="one taken here; or --any-device")
    for i, spec in enumerate(experiment.deployment.workers):
        llm = spec.modules[0] in experiment.pipeline.llms
        if llm:
            maker_of((spec.policy or experiment.policy).name)
        if llm and settings_of(spec, load(experiment.deployment.devices[spec.device or ""])).asynchronous:
            what = "engines in processes of their own decide a step when the one before is over"
            right = "asynchronous: false; or --backend vllm, for a language model alone"
            raise BadInput(what, where=f"deployment.workers.{i}.engine.asynchronous", right=right)


class AgentsBackend:
    """Serves experiments whose stages are language models and tools.

    Engines are started as their profiles say: *model* (None: the profile's), precision, limits. They stay where they
    are from one run to the next with the same deployment; `close` ends them.
    """

    def __init__(self, model: str | None = None) -> None:
        self.model = model
        self.engines: dict[str, EngineProcess] = {}
        self._of: dict[str, Any] = {}

    @as_loaded()
    def run(self, experiment: Experiment, folder: Path | None = None, say: Say | None = None) -> Report:
        """Serve *experiment*; with *folder*, leave its records there. Raises as
        `servetwin.real.vllm.pipeline_server.serve`."""
        say = say or (lambda _: None)
        from servetwin.real.vllm.pipeline_server import serve

        plan = Plan(experiment, diffusion=False)
        stages, ours, wiring = plan.system(self._worker)
        check_limits(ours, alone=False)
        tools = real_tools(plan.experiment)
        say("starting an engine for each language model")
        self.start(plan.experiment)
        say(f"serving {len(plan.requests)} requests")
        recorder: Recorder = Recorder()
        if folder is not None:
            recorder = build.folder_for(experiment, folder, {**build.describe(experiment), "kind": "real"})
        prepare(recorder, plan.experiment, ours)
        with recording(recorder, folder):
            after = experiment.system.stop_after
            report = serve(
                stages, ours, plan.requests, self.engines, recorder, tools=tools, stop_after=after, **wiring
            )
        if folder is not None:
            write_report(folder, report)
        return report

    def _worker(self, worker: Worker) -> Worker:
        from servetwin.real.vllm.engine_process import EngineWorker

        if not isinstance(worker, TokenWorker):
            return worker
        return EngineWorker(worker.stage, worker.policy, worker.view, device=worker.device)

    def start(self, experiment: Experiment) -> None:
        """Start an engine for each LLM worker that has none, all at once. Raises `ServeTwinError`."""
        from servetwin.real.vllm.engine_process import EngineProcess, EngineSetup

        wanted = {}
        for spec in experiment.deployment.workers:
            if spec.modules[0] in experiment.pipeline.llms:
                wanted[spec.name or spec.modules[0]] = EngineSetup(
                    self._options(experiment, spec), *self._settings(experiment, spec)
                )
            elif spec.threads is None:
                what = f"{'+'.join(spec.modules)} is neither a language model nor a tool"
                raise BadInput(what, where="deployment.workers", right="a pipeline of those")
        for name in list(self.engines):
            engine = self.engines[name]
            if name not in wanted or wanted[name].options != self._of[name].options or not engine.alive():
                self.engines.pop(name).close()
            else:  # the engine stays; its policy does not know the run before
                engine.install(wanted[name])
                self._of[name] = wanted[name]
        missing = [name for name in wanted if name not in self.engines]
        for name in missing:
            self.engines[name], self._of[name] = EngineProcess(wanted[name]), wanted[name]
        for name in missing:
            self.engines[name].ready()

    def _options(self, experiment: Experiment, spec: WorkerSpec) -> dict[str, Any]:
        """`servetwin.real.vllm.engine.EngineOptions` of a worker."""
        from servetwin.profiles import load

        profile = load(experiment.deployment.devices[spec.device or ""])
        data, limit = profile.token_data, spec.limit or 1
        settings = settings_of(spec, profile)
        limits = settings.limits
        engines = sum(w.modules[0] in experiment.pipeline.llms for w in experiment.deployment.workers)
        cpu = profile.data.device.kind == "cpu"
        kv_bytes = CPU_KV if cpu else None
        if engines > 1 and not cpu:  # none may take what the others are about to take
            from servetwin.real.vllm.engine import bytes_per_token

            token = bytes_per_token(self.model or data.architecture, PRECISIONS[profile.data.precision])
            kv_bytes = (data.kv.blocks + 1) * data.kv.block_size * token  # vLLM keeps one for itself
        return {
            "model": self.model or data.architecture,
            "dtype": PRECISIONS.get(profile.data.precision, "float32"),
            "max_model_len": settings.max_model_len,
            "max_batched_tokens": limits.max_batched_tokens,
            "max_sequences": limit,
            "block_size": limits.block_size,
            "gpu_memory_utilization": data.engine.gpu_memory_utilization / engines,
            "kv_bytes": kv_bytes,
            "graphs": (1, 2, 4, *range(8, limit + 1, 8)) if data.engine.cuda_graphs and not cpu else (),
        }

    def _settings(self, experiment: Experiment, spec: WorkerSpec) -> tuple[dict[str, Any], Maker]:
        """`servetwin.real.vllm.scheduler.Settings` of a worker, and what makes its policy in the engine's process."""
        policy, slo = spec.policy or experiment.policy, experiment.slo
        scales = None
        if isinstance(slo, TokenSLOSpec) and slo.prefill is not None:
            scales = f"{slo.prefill}+{slo.decode}"
        profile = experiment.deployment.devices[spec.device or ""]
        place, make = maker_of(policy.name)
        name = spec.name or spec.modules[0]
        settings = {"policy": place, "params": policy.params, "profile": profile, "slo": scales, "name": name}
        return settings, make

    def close(self) -> None:
        """End all engines."""
        for engine in self.engines.values():
            engine.close()
        self.engines.clear()
