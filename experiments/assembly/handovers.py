"""From workers that prefill to workers that decode: what an experiment says of that, as engines take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.core.llm.serving.handover import Handover, KVTransfer
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.profiles.llm.architectures import architecture
from servetwin.profiles.tables.costs import HANDOVER

from ..spec.experiment import Experiment, WorkerSpec

if TYPE_CHECKING:
    from servetwin.core import Worker
    from servetwin.core.routing import Router
    from servetwin.profiles import Profile

BANDWIDTH = "deployment.handover.gb_per_s"


def refuse(experiment: Experiment, who: str, right: str) -> None:
    """Raise `BadInput` if prefill and decode are apart, of which *who* knows nothing; *right* is what does."""
    if experiment.deployment.handover is not None:
        what = f"{who} knows nothing of prefill and decode apart"
        raise BadInput(what, where="deployment.handover", right=right)


def stands_on(experiment: Experiment) -> list[str]:
    """A line on what the bandwidth between prefill and decode stands on, if the experiment states it; or that it
    counts for nothing."""
    said = experiment.deployment.handover
    if said is None:
        return []
    if not experiment.time.transport:
        return ["KV is handed over in no time: time.transport is false"]
    if said.gb_per_s is None:
        return []
    return [f"KV is handed over at {said.gb_per_s:g} GB/s, after {said.latency:g} s: {said.source}"]


def profiles_by_role(
    experiment: Experiment, spec: WorkerSpec, profiles: Mapping[str, Profile]
) -> tuple[Profile, Profile]:
    """By which profiles the prompts, and the other tokens, of the module of *spec* are promised: those of the first
    worker that prefills, and of the first that decodes; its own where it does both."""
    same = [w for w in reversed(experiment.deployment.workers) if w.modules == spec.modules]
    by_role = {w.role: profiles[w.device or ""] for w in same}
    own = profiles[spec.device or ""]
    return by_role.get("prefill", own), by_role.get("decode", own)


def make_handovers(
    experiment: Experiment,
    workers: Sequence[Worker],
    profiles: Mapping[str, Profile],
    router: Router | None,
    stale: float,
) -> list[Handover]:
    """How each language model whose prefill and decode are apart hands over, given to its *workers*; *router* picks
    who decodes, by states of up to *stale* seconds ago. Raises `BadInput` if it is not known what that takes."""
    found: list[Handover] = []
    apart = [w for w in workers if isinstance(w, TokenWorker) and w.role != "both"]
    for stage in dict.fromkeys(w.stage for w in apart):
        ours = [w for w in apart if w.stage is stage]
        decode = [w for w in ours if w.role == "decode"]
        transfer = _transfer(experiment, [w for w in ours if w.role == "prefill"], decode, profiles)
        assert router is not None
        dispatcher = Dispatcher(decode, router, stale={router: stale}, seed=experiment.seed)
        handover = Handover(decode, transfer, dispatcher)
        for worker in ours:
            worker.handover = handover
        found.append(handover)
    return found


def _transfer(
    experiment: Experiment,
    prefill: Sequence[TokenWorker],
    decode: Sequence[TokenWorker],
    profiles: Mapping[str, Profile],
) -> KVTransfer:
    said = experiment.deployment.handover
    assert said is not None
    of_model = _bytes_per_token([profiles[w.device] for w in (*prefill, *decode)])
    fp8 = _in_fp8(experiment, prefill)
    size = said.bytes_per_token or (of_model / 2 if fp8 else of_model)
    seconds: dict[str, Callable[[int], float]] = {}
    for worker in prefill:
        if said.gb_per_s is not None:
            each, constant = size / (said.gb_per_s * 1e9), said.latency
        else:
            if fp8:
                what = "what handing over KV in fp8 takes is not known: kv.handover is of twice the bytes"
                raise BadInput(what, where=BANDWIDTH, right="the bandwidth, gb_per_s: 25, say, and its source")
            constant, each = _measured(profiles[worker.device])
            constant += said.latency
        if not experiment.time.transport:
            constant = each = 0.0
        seconds[worker.name] = partial(_line, constant, each)
    return KVTransfer(seconds, size, said.link, said.overlap, said.first_token)


def _in_fp8(experiment: Experiment, workers: Sequence[TokenWorker]) -> bool:
    """Whether *workers*, which serve one module, keep KV in 8 bits: all of its workers do then."""
    module = workers[0].stage.loop or workers[0].stage.name
    engines = [w.engine for w in experiment.deployment.workers if w.modules[0] == module]
    return any(engine is not None and engine.kv_cache_dtype == "fp8" for engine in engines)


def _line(constant: float, each: float, tokens: int) -> float:
    return constant + each * tokens


def _measured(profile: Profile) -> tuple[float, float]:
    """What *profile* says that sending takes, in seconds: always, and for each token."""
    if HANDOVER() not in profile.costs:
        what = f"nothing says how long KV takes from engine to engine: {profile.name} has no cost kv.handover"
        right = "the bandwidth, gb_per_s: 25, say, and its source; or a profile with that cost"
        raise BadInput(what, where=BANDWIDTH, right=right)
    cost = profile.cost(HANDOVER())
    return (cost.scalar(), 0.0) if cost.line is None else (cost.line.constant, cost.line.per_request)


def _bytes_per_token(profiles: Sequence[Profile]) -> int:
    """Bytes of KV that a token takes, by the model of the *profiles*. Raises `BadInput` if they are of several."""
    models = [profile.token_data.shape or architecture(profile.token_data.architecture) for profile in profiles]
    for model, profile in zip(models, profiles, strict=True):
        if model.kv_bytes_per_token() != models[0].kv_bytes_per_token():
            what = f"{profiles[0].name} and {profile.name} are of models whose KV differs"
            raise BadInput(what, where="deployment.devices", right="profiles of one model for prefill and decode")
    return models[0].kv_bytes_per_token()
