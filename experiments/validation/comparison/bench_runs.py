"""Files of ``vllm bench serve --save-result --save-detailed`` as run folders, to be scored and compared as others.

Such a file does not say by which profile, policy and SLO its run is to be judged; that an experiment says, whose
requests are then those of the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from servetwin.core import BadInput
from servetwin.core.llm import TokenRequest
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.processes.temporary_folders import temporary_folder
from servetwin.real.vllm.plan import Run, Served
from servetwin.real.vllm.records import record

from ...assembly import build
from ...assembly.llm_workers import prepare
from ...spec.experiment import Experiment
from ...spec.loading import load
from ...spec.overrides import Override
from ...workload.traces.bench_file import BenchRun, is_bench, read
from . import compare_runs


def files(path: Path) -> list[Path]:
    """The files of ``vllm bench serve`` at *path*: itself, or those in a folder that holds no run folders."""
    if path.is_dir():
        found = sorted(p for p in path.glob("*.json") if p.is_file())
        return [p for p in found if is_bench(p)]
    return [path] if path.suffix == ".json" and path.is_file() and is_bench(path) else []


def with_requests_of(bench: Path, content: dict[str, Any], overrides: Iterable[Override] = ()) -> Experiment:
    """The experiment of *content* with the requests of the file *bench*. Raises `BadInput` unless it has one language
    model and nothing else."""
    run = read(bench)
    modules = content.get("pipeline", {}).get("modules", {})
    if len(modules) != 1 or next(iter(modules.values())).get("kind") != "llm":
        what = "vllm bench serve asks one language model, and this experiment serves something else"
        raise BadInput(what, where=str(content.get("name")), right="a pipeline of one module of kind llm")
    lengths = {"prompt": {"draw": "trace"}, "output": {"draw": "trace"}}
    workload = {
        "requests": None,
        "arrivals": {"process": "trace", "file": str(bench.resolve()), "format": "vllm-bench"},
        "lengths": {next(iter(modules)): {**lengths, "limit": max(r.output for r in run.requests)}},
    }
    system = {**content.get("system", {}), "client_delay": 0.0, "client_stretch": 0.0}
    return load({**content, "workload": workload, "system": system}, list(overrides))


def as_run(bench: Path, experiment: Experiment, folder: Path) -> Path:
    """Leave the run that the file *bench* tells of in *folder*, as a run of *experiment*, which has its requests;
    gives the folder.

    A request declares the output that it had. Raises `BadInput` where the client had only so many requests in flight:
    what it sent then depends on the server.
    """
    found = read(bench)
    if found.concurrency is not None:
        what = f"the client had {found.concurrency} requests in flight at most, so the server set the pace"
        raise BadInput(what, where=f"{bench}: max_concurrency", right="a run without --max-concurrency")
    made = build.build(experiment)
    (worker,) = made.loop.workers
    assert isinstance(worker, TokenWorker)
    name = worker.stage.loop or worker.stage.name
    sent: dict[int, TokenRequest] = {}
    for drawn, r in zip(made.source, found.requests, strict=True):
        assert isinstance(drawn, TokenRequest)
        tokens, outputs = {name: (r.prompt, r.output)}, {name: r.output}
        sent[drawn.id] = TokenRequest(drawn.id, drawn.arrival, tokens, outputs, slo=drawn.slo, **drawn.terms)
    about = {"bench": bench.name, "failed_left_out": len(found.failed), "tokens_bundled": found.bundled}
    meta = {**build.describe(experiment), "kind": "real", "engine": about}
    recorder = build.folder_for(experiment, folder, meta)
    with build.closing(recorder):
        prepare(recorder, experiment, [worker])
        record(_run(found, sent), worker, sent, recorder)
    return folder


def _run(found: BenchRun, sent: dict[int, TokenRequest]) -> Run:
    zero = found.requests[0].start
    served = []
    for request, r in zip(sent.values(), found.requests, strict=True):
        times = [t - zero for t in r.times]
        at = r.start - zero
        served.append(Served(request.id, at, r.prompt, r.output, at, "finished", times, ended=times[-1]))
    return Run(served, [], [], [], served[-1].ended)


def told(bench: Path) -> list[str]:
    """What is to be said of the file *bench*: requests that are left out, and tokens whose times are not known."""
    run, lines = read(bench), []
    if run.failed:
        lines.append(f"{bench.name}: {len(run.failed)} requests failed, and are left out")
    if run.bundled:
        what = "events held other than one token: first and last token are as measured, those between spread"
        lines.append(f"{bench.name}: of {run.bundled} requests {what}")
    return lines


def compared(first: Path, second: Path) -> tuple[dict[str, Any], list[str]]:
    """Two runs as `compare_runs.compare` has them, one of which may be a file of ``vllm bench serve``: it is judged
    as a run of the other's experiment. Also what is to be said of the file."""
    benches = [path for path in (first, second) if files(path) == [path]]
    if not benches:
        return compare_runs.compare(first, second), []
    if len(benches) == 2:
        what = "two files of vllm bench serve, and neither says by which profile, policy and SLO"
        raise BadInput(what, where=str(second), right="a run folder on one side")
    (bench,), other = benches, first if second in benches else second
    meta = compare_runs.read(other).meta
    with temporary_folder() as work:
        made = as_run(bench, with_requests_of(bench, dict(meta.get("experiment", {}))), work / bench.stem)
        found = compare_runs.compare(*(made if path == bench else path for path in (first, second)))
    for side in found["runs"]:
        if side["folder"] == str(made):
            side["folder"] = str(bench)
    return found, told(bench)
