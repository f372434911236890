"""The facts of recorded runs, read from the recordings that come with ServeTwin, or from others like them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from servetwin.core import Request
from servetwin.core.llm import EngineLimits, TokenRequest
from servetwin.profiles import load as load_profile

from ...registry.catalog import MEASURED
from ...spec.experiment import Experiment, ModuleSpec, PipelineSpec
from ..comparison import run_table
from ..replay import agents as replay_agents
from ..replay import chat, diffusion, external, llm, packed_runs
from .facts import Asked, Facts, Range, engine_options, of_experiment, systems_of
from .keys import as_word, pipeline

#: The pipeline of runs of one language model.
LLM = pipeline(PipelineSpec(modules={"llm": ModuleSpec(kind="llm")}))


def sources() -> dict[str, list[Path]]:
    """The recordings, by the names that they have in the scoreboard (below ``experiments/measured``): runs of
    diffusion models by folder, of language models by file."""
    found: dict[str, list[Path]] = {run_table.NEUSTREAM.name: [run_table.NEUSTREAM]}
    for path in sorted(MEASURED.rglob("*.json.gz")):
        folder = path.parent.relative_to(MEASURED).as_posix()
        if not is_open(path):
            continue
        if external.is_external(path) or packed_runs.is_packed(path) or path.parent.name == "diffusion":
            name = folder
        else:
            name = path.relative_to(MEASURED).as_posix()
        found.setdefault(name, []).append(path)
    return found


def is_open(path: Path) -> bool:
    """Whether the recording *path* says what was measured, and does not hold it out."""
    return not external.is_external(path) or external.read(path).measured is not None


def of(path: Path) -> list[Facts]:
    """The facts of each run that is recorded in the file *path*. Raises `BadInput`."""
    if path.suffix == ".csv":
        return list(_of_table(path))
    if packed_runs.is_packed(path):
        return list(_of_folders(path))
    if external.is_external(path):
        return [_of_external(external.read(path))]
    if chat.is_chat(path):
        return list(_of_chat(path))
    if llm.is_campaign(path):
        return list(_of_campaign(llm.read(path)))
    if replay_agents.is_agents(path):
        return [of_experiment(experiment) for experiment in replay_agents.experiments(replay_agents.read(path))]
    return list(_of_diffusion(diffusion.read_recording(path)))


def _of_table(path: Path) -> Iterator[Facts]:
    """Lines whose experiments are the same are so once."""
    _, runs = run_table.read(path)
    for experiment in run_table.experiments(runs, path):
        yield of_experiment(experiment)


def _of_folders(path: Path) -> Iterator[Facts]:
    """Policies and routers in files of their own are known by these files' names."""
    for run in packed_runs.read(path)["runs"]:
        sent = [Request(i, at, 1.0, work) for i, at, work in zip(run["id"], run["arrival"], run["work"], strict=True)]
        content = run["meta"]["experiment"]
        files = [of[key] for of, key in packed_runs.named_files(content)]
        named = content["policy"]["name"]
        if named in files:
            content["policy"] = {"name": "fcfs"}
        own = ""
        for of_, key in packed_runs.routers(content):
            own, of_[key] = of_[key], "least_loaded"
        found = of_experiment(Experiment.model_validate(content), sent)
        if own:
            found = _by_its_name(found, "least_loaded", own)
        if named in files:
            found = replace(found, policy=named, params={})
        yield found


def _of_chat(path: Path) -> Iterator[Facts]:
    profile, runs = chat.read(path)
    for run in runs:
        with run.spec(profile) as experiment:
            (module,) = experiment.pipeline.llms
            sent = [
                TokenRequest(i, at, {module: (prompt, limit)}, {module: output})
                for i, (at, prompt, limit, output, *_) in enumerate(run.requests)
            ]
            found = of_experiment(experiment, sent)
            for router in experiment.deployment.routings.values():
                found = _by_its_name(found, router.name, Path(router.name).name)
            yield found


def _by_its_name(found: Facts, router: str, name: str) -> Facts:
    """*found*, with the *router* by the *name* of its file, which is no other one's path."""
    said = f"router {router}"
    return replace(
        found, special=tuple(f"router {name}{w[len(said) :]}" if _is(w, said) else w for w in found.special)
    )


def _is(word: str, router: str) -> bool:
    return word == router or word.startswith(f"{router} ")


def _of_diffusion(recording: diffusion.Recording) -> Iterator[Facts]:
    looped = next(name for name, loops in recording.modules if loops)
    once = min(recording.once, recording.limit)
    for run in recording.runs:
        groups = [[name for name, _ in recording.modules]] if run.whole else recording.placement
        limits: dict[str, Range] = {}
        for group in groups:
            most = recording.limit if list(group) == [looped] else once
            limits[f"batch limit of {'+'.join(group)}"] = (most, most)
        sent = [Request(i, 0.0, 1.0, {looped: steps}) for i, steps in enumerate(run.steps)]
        yield Facts(
            systems=systems_of([load_profile(recording.profile)]),
            policy=run.policy,
            placement=", ".join(sorted("+".join(group) for group in groups)),
            special=(f"system.stop_after {as_word(recording.stop_after)}",),
            pipeline=pipeline(PipelineSpec(modules={n: ModuleSpec(loop=loops) for n, loops in recording.modules})),
            ranges={
                **limits,
                "replicas": (1, 1),
                **Asked.of(sent).ranges(),
                "SLO factor": (run.slo_factor, run.slo_factor),
                **Asked.of(sent).demand(run.rate),
                "cv": (run.cv, run.cv),
            },
        )


def _of_campaign(campaign: llm.Campaign) -> Iterator[Facts]:
    """A run under a policy that looks at no deadline is judged under every SLO of the campaign."""
    slos = sorted({run.slo for run in campaign.runs if "+" in run.slo} | {"3+1.5", "5+2"})
    limits, options = campaign.limits, campaign.engine["options"]
    for run in campaign.runs:
        profile = run.profile or campaign.profile
        if run.profiled or profile is None:
            continue
        sent = [TokenRequest(r.id, r.arrival, {"llm": (r.prompt, r.limit)}, {"llm": r.output}) for r in run.requests]
        for slo in slos if run.policy in llm.BLIND else (run.slo,):
            prefill, decode = (float(part) for part in slo.split("+"))
            yield Facts(
                systems=systems_of([load_profile(profile)]),
                policy="vllm-v1" if run.policy == "own" else run.policy,
                placement="llm",
                engine=engine_options(limits, bool(options.get("asynchronous", False))),
                pipeline=LLM,
                ranges={
                    **_of_one_engine(limits, sent),
                    "prefill SLO": (prefill, prefill),
                    "decode SLO": (decode, decode),
                    **Asked.of(sent).demand(run.rate),
                    "cv": (run.cv, run.cv),
                },
            )


def _of_one_engine(limits: EngineLimits, sent: Sequence[TokenRequest]) -> dict[str, Range]:
    """The ranges of a run on one engine with these *limits*."""
    return {
        "batch limit of llm": (limits.max_sequences, limits.max_sequences),
        "KV blocks of llm": (limits.blocks, limits.blocks),
        "replicas": (1, 1),
        **Asked.of(sent).ranges(),
    }


def _of_external(run: external.External) -> Facts:
    sent = [TokenRequest(i, at, {"llm": (p, o)}, {"llm": o}) for i, (at, p, o) in enumerate(run.requests)]
    first, last = run.requests[0][0], run.requests[-1][0]
    limits = run.limits
    gaps = np.diff([at for at, *_ in run.requests])
    cv = float(gaps.std() / gaps.mean()) if last > first else 0.0
    return Facts(
        systems=systems_of([load_profile(run.profile)]),
        policy="vllm-v1",
        placement="llm",
        engine=engine_options(limits, bool(run.engine.get("async_scheduling", False))),
        pipeline=LLM,
        ranges={
            **_of_one_engine(limits, sent),
            **_limits(run),
            **(Asked.of(sent).demand(len(sent) / (last - first)) if last > first else {}),
            "cv": (cv, cv),
        },
    )


def _limits(run: external.External) -> dict[str, Range]:
    """The limits under which such a run is scored."""
    assert run.measured is not None
    found: dict[str, Range] = {}
    for name, parts in (("ttft", external.TTFT), ("tpot", external.TPOT)):
        low, high = (1e3 * float(np.percentile(getattr(run.measured, name), p)) for p in (parts[0], parts[-1]))
        found[f"{name} limit, ms"] = (low, high)
    return found
