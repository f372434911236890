"""The registry of costs: every name that a profile may use, what it means, its unit and its forms, and who reads it.

Writers make names here and readers look them up here; a name that stands in no entry is refused with the nearest one
that does. ``python -m servetwin.profiles.costs_page`` prints the tables of docs/reference/profiles.md.

>>> JOIN("unet"), BESIDE("unet", ["clip", "vae"])
('unet.join', 'unet.device_beside.clip_and_vae')
>>> BESIDE_BATCH.sizes({"unet.device_beside.vae": 1, "unet.device_beside.vae.4": 1}, "unet", "vae")
{4: 'unet.device_beside.vae.4'}
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .cost_names import ENGINE, NUMBERS, POLICIES, CostName, Form, Known
from .field_types import Fault

if TYPE_CHECKING:
    from .cost import Cost

#: Nothing runs half as fast again beside others as alone; and what only comes on top of an iteration, and may be
#: less than nothing, takes no minute.
FASTEST, LONGEST = 1.5, 60.0

_LOOP, _SPELLS = "simulator: iterations of a loop", ("<loop>.slow_share", "<loop>.slow_spell", "<loop>.slow_normal")
_BETWEEN = "simulator: between workers"
_WHOLE, _ENGINE, NOBODY = "simulator: batches of whole requests", ENGINE, "nobody"
_UPTO: tuple[Form, ...] = ("by_batch", "line", "value")
_VALUE: tuple[Form, ...] = ("value",)
_TABLE: tuple[Form, ...] = ("by_batch",)

HOST = CostName("<loop>.host", "seconds", _UPTO, "host time of an iteration", _LOOP, needs=("<loop>.device",))
DEVICE = CostName("<loop>.device", "seconds", _UPTO, "device time of an iteration", _LOOP, needs=("<loop>.host",))
AHEAD = CostName(
    "<loop>.ahead",
    "seconds",
    _UPTO,
    "how far the host runs ahead of the device; without it the worker waits for the device in each iteration",
    _LOOP,
    needs=("<loop>.device",),
)
REGROUP = CostName(
    "<loop>.regroup",
    "seconds",
    ("value",),
    "what a step takes longer before which a request changes devices of a group; needed where policies change them",
    _LOOP,
)
JOIN = CostName(
    "<loop>.join",
    "seconds",
    _VALUE,
    "what an iteration takes longer for each request that joins",
    _LOOP,
    least=None,
    most=LONGEST,
)
REUSE = CostName(
    "<loop>.reuse",
    "ratio",
    ("value", "by_batch"),
    "what a step takes that uses the network's last prediction again, over one in which the network runs; needed "
    "where policies may reuse it",
    _LOOP,
    above=True,
    most=1.0,
)
LEAVE = CostName("<loop>.leave", "seconds", ("line",), "likewise for those that leave, by how many do", _LOOP)
PAUSE = CostName(
    "<loop>.pause",
    "seconds",
    _VALUE,
    "how long the host is busy per leaving request before the next iteration, the device free",
    _LOOP,
)
_CROWD = "requests that do"
JOINS = CostName(
    "<loop>.joins",
    "seconds",
    _TABLE,
    "what an iteration takes longer if so many join; goes before join",
    _LOOP,
    _CROWD,
)
LEAVES = CostName("<loop>.leaves", "seconds", _TABLE, "likewise if so many leave", _LOOP, _CROWD)
PAUSES = CostName("<loop>.pauses", "seconds", _TABLE, "pause if so many leave, in all", _LOOP, _CROWD)
COLD = CostName(
    "<loop>.cold", "seconds", ("by_batch", "value"), "extra time after an idle period", _LOOP, "iterations since then"
)
COLD_LONG = CostName(
    "<loop>.cold_long", "seconds", ("by_batch", "value"), "likewise after a long period", _LOOP, COLD.by
)
LONG_SPELL = CostName("<loop>.long_spell", "seconds", _VALUE, "from which length on an idle period is long", _LOOP)
DECIDING = CostName(
    "<loop>.deciding", "seconds", _VALUE, "what an iteration takes longer per request left waiting", _LOOP
)
DECIDING_OF = CostName("<loop>.deciding.<policy>", "seconds", _VALUE, "likewise under a policy", _LOOP)
GAP = CostName("<loop>.gap", "seconds", _UPTO, "from an iteration's end to the next launch; in the periods", _LOOP)
GAP_OF = CostName(
    "<loop>.gap.<policy>",
    "seconds",
    _UPTO,
    "likewise under a policy, which takes the difference",
    _LOOP,
    needs=("<loop>.gap",),
)
RESIDUAL = CostName(
    "<loop>.residual",
    "ratio",
    ("quantiles",),
    "time of an iteration over its mean, drawn where noise is on",
    _LOOP,
    above=True,
)
SESSION = CostName(
    "<loop>.session", "ratio", ("sessions", "value"), "factor on host time, by date and time", _LOOP, above=True
)
SLOW_SHARE = CostName(
    "<loop>.slow_share",
    "ratio",
    _VALUE,
    "share of the time in which the host is slow",
    _LOOP,
    needs=(*_SPELLS[1:], "<loop>.slow_factor"),
    above=True,
)
SLOW_SPELL = CostName(
    "<loop>.slow_spell", "seconds", _VALUE, "how long a slow period lasts", _LOOP, needs=_SPELLS[:1], above=True
)
SLOW_NORMAL = CostName(
    "<loop>.slow_normal", "ratio", _VALUE, "factor on host time between them", _LOOP, needs=_SPELLS[:1], above=True
)
SLOW_FACTOR = CostName(
    "<loop>.slow_factor", "ratio", _VALUE, "factor on host time in them", _LOOP, needs=_SPELLS[:1], above=True
)
TIME = CostName("<once>.time", "seconds", _UPTO, "a batch of a stage without a loop", "simulator: other stages")

_BESIDE_BY = "batch of the loop; of two stages without one that of the later"
BESIDE = CostName(
    "<module>.device_beside.<others>",
    "ratio",
    ("value", "by_batch"),
    "rate of device work while other workers on the device are busy, in ones; where three stages run at once and "
    "there is none for two others the rates beside each multiply",
    "simulator: contention",
    _BESIDE_BY,
    above=True,
    most=FASTEST,
)
BESIDE_BATCH = CostName(
    "<module>.device_beside.<others>.<batch>",
    "ratio",
    _TABLE,
    "likewise with the last stage in such batches",
    "simulator: contention",
    _BESIDE_BY,
    needs=(BESIDE.pattern,),
    above=True,
    most=FASTEST,
)
HOST_BESIDE = CostName(
    "<module>.host_beside.<others>",
    "ratio",
    ("value", "by_batch"),
    "rate of host work meanwhile",
    "simulator: contention",
    _BESIDE_BY,
    needs=(BESIDE.pattern,),
    above=True,
    most=FASTEST,
)
HOST_BESIDE_BATCH = CostName(
    "<module>.host_beside.<others>.<batch>",
    "ratio",
    _TABLE,
    "likewise with the last stage in such batches",
    "simulator: contention",
    _BESIDE_BY,
    needs=(HOST_BESIDE.pattern,),
    above=True,
    most=FASTEST,
)
TRANSPORT = CostName(
    "transport.<from>.<to>",
    "seconds",
    _VALUE,
    "from sent by one stage, or the client, until queued at the next; drawn from quantiles where noise is on",
    _BETWEEN,
)
BETWEEN_DEVICES = CostName(
    "transport.between_devices", "seconds", _VALUE, "beside that, from sent on another device until here", _BETWEEN
)

WHOLE_RATIO = CostName(
    "whole.ratio", "ratio", _UPTO, "what batches of whole requests take over what is expected", _WHOLE, above=True
)
WHOLE_SPREAD = CostName("whole.spread", "ratio", ("quantiles",), "the same over its mean", _WHOLE, above=True)
WHOLE_SESSION = CostName(
    "whole.session", "ratio", ("sessions", "value"), "factor on it, by date and time", _WHOLE, above=True
)
WHOLE_COLD = CostName("whole.cold", "seconds", _VALUE, "what such a batch takes longer after an idle period", _WHOLE)
WHOLE_COLD_LONG = CostName("whole.cold_long", "seconds", _VALUE, "likewise after a long one", _WHOLE)
WHOLE_PAUSE = CostName(
    "whole.pause", "seconds", _UPTO, "from the end of such a batch to the start of the next", _WHOLE
)

BEFORE_ENGINE = CostName(
    "server.before_engine",
    "seconds",
    ("line", "value"),
    "of an HTTP server: from sent until the engine has it, and back; per_request of a line counts prompt tokens",
    _ENGINE,
)

SWAP = CostName(
    "kv.swap",
    "seconds",
    ("line", "value"),
    "moving KV blocks between device and host, each; per_request of a line "
    "counts blocks; needed by engines that preempt by swapping",
    _ENGINE,
)
HANDOVER = CostName(
    "kv.handover", "seconds", ("line", "value"), "handing a prompt's KV over; per_request counts tokens", _ENGINE
)
FP8_KV = CostName(
    "kv.fp8.<kind>",
    "ratio",
    _VALUE,
    "what the part of such steps that grows with the tokens before them takes with KV in 8 bits, over what it takes "
    "in this profile; needed by engines with `kv_cache_dtype: fp8`, unless the experiment states it",
    _ENGINE,
    above=True,
)
DRAFT = CostName(
    "speculation.draft",
    "seconds",
    ("line", "value"),
    "making the drafts of a step; per_request of a line counts sequences that decode; needed by engines with a "
    "`speculative_config`, unless the experiment states it",
    _ENGINE,
)
HOP = CostName(
    "pipeline.hop",
    "seconds",
    ("line", "value"),
    "sending the activations of a step from one stage of a model to the next; per_request of a line counts tokens "
    "of the step; needed by engines with `pipeline_parallel`, unless the experiment states it",
    _ENGINE,
)
LORA_LOAD = CostName(
    "lora.load",
    "seconds",
    _VALUE,
    "bringing a LoRA adapter to the device; needed by engines with `lora`, unless the experiment states it",
    _ENGINE,
)
LORA_SLOWDOWN = CostName(
    "lora.slowdown",
    "ratio",
    _VALUE,
    "what steps take where layers have LoRA adapters, over what they take in this profile; likewise",
    _ENGINE,
    above=True,
)
STEP_BETWEEN = CostName(
    "step.between",
    "seconds",
    _UPTO,
    "from the end of a step until the scheduler is asked for the next",
    _ENGINE,
    "sequences of the step that ended",
)
INTAKE = CostName("engine.intake", "seconds", _VALUE, "what taking a request in costs the host", _ENGINE)
BEGINS = CostName(
    "step.begins", "seconds", _VALUE, "from asking the policy until a step can begin on an idle device", _ENGINE
)
BEGINS_EACH = CostName(
    "step.begins.each",
    "seconds",
    _VALUE,
    "what it takes longer for each of its sequences until a step can begin; `step.launch.each` where it is not told",
    _ENGINE,
    needs=("step.begins",),
)
LAUNCH = CostName(
    "step.launch", "seconds", _VALUE, "what launching a step of more than `engine.graph_tokens` tokens takes", _ENGINE
)
LAUNCH_PIECES = CostName(
    "step.launch.pieces",
    "seconds",
    _VALUE,
    "what launching a step with prompts takes that `engine.graph_tokens` holds, as graphs piece by piece",
    _ENGINE,
)
LAUNCH_EACH = CostName(
    "step.launch.each", "seconds", _VALUE, "what launching a step takes longer for each of its sequences", _ENGINE
)
LAUNCH_LEFT = CostName(
    "step.launch.left",
    "seconds",
    _VALUE,
    "what launching a step takes longer for each sequence that was in the one before, has not ended and is not in it",
    _ENGINE,
)
LAUNCH_BACK = CostName(
    "step.launch.back",
    "seconds",
    _VALUE,
    "likewise for each running sequence that is in it again and was not in the one before",
    _ENGINE,
    needs=("step.launch.back_token",),
)
LAUNCH_BACK_TOKEN = CostName(
    "step.launch.back_token", "seconds", _VALUE, "and per token of its context", _ENGINE, needs=(LAUNCH_BACK.pattern,)
)
TOLD = CostName(
    "step.told",
    "seconds",
    _VALUE,
    "where processes of their own launch steps, as with tensor parallelism: from asking the policy until they have "
    "been told of the step and the engine's goes on; without it the engine's own process launches",
    _ENGINE,
)
TOLD_EACH = CostName(
    "step.told.each",
    "seconds",
    _VALUE,
    "what that takes longer for each of its sequences",
    _ENGINE,
    needs=("step.told",),
)
HOST_SLOWDOWN = CostName(
    "host.slowdown",
    "ratio",
    ("quantiles",),
    "what launching a step takes over its mean: the host is slower at times than at others; drawn where noise is on",
    _ENGINE,
    needs=("host.slowdown_lasts",),
    above=True,
)
HOST_SLOWDOWN_LASTS = CostName(
    "host.slowdown_lasts",
    "seconds",
    _VALUE,
    "how long that lasts on average",
    _ENGINE,
    needs=("host.slowdown",),
    above=True,
)
STALL = CostName(
    "host.stall",
    "seconds",
    _VALUE,
    "for how long the host stands still, now and then, while it launches a step; "
    "drawn from quantiles where noise is on",
    _ENGINE,
    needs=("host.stall_every",),
)
STALL_EVERY = CostName(
    "host.stall_every", "seconds", _VALUE, "from one stall to the next", _ENGINE, needs=("host.stall",), above=True
)
STALL_CHANGING = CostName(
    "host.stall_every.changing",
    "seconds",
    _VALUE,
    "likewise where a step computes prompts or lacks somebody",
    _ENGINE,
    needs=("host.stall_every",),
    above=True,
)
RATIO = CostName(
    "<kind>.ratio",
    "ratio",
    ("quantiles",),
    "time of a step over the table, drawn where noise is on",
    _ENGINE,
    above=True,
)
RECENT_LOAD = CostName(
    "<step>.recent_load.<tokens>",
    "ratio",
    _TABLE,
    "what steps of up to so many tokens take over the table; where there is none for mixed that for prefill stands",
    _ENGINE,
    "tokens a second computed just before",
    needs=("prefill.recent_load",),
    above=True,
)
RECENT_LOAD_MEMORY = CostName(
    "prefill.recent_load", "seconds", _VALUE, "in how many seconds those tokens fade", _ENGINE, above=True
)
RATE_BESIDE = CostName(
    "<kind>.rate_beside.<other>.<size>",
    "ratio",
    _TABLE,
    "rate of a step while another engine on the device runs one of the second kind and that size",
    "simulator: contention",
    "tokens of a prefill step, or sequences of a decode step",
    above=True,
    most=FASTEST,
)

PLAIN = CostName("<loop>.plain", "seconds", _TABLE, "median of an iteration, nothing else going on", NOBODY)
P99 = CostName("<loop>.p99", "ratio", _TABLE, "its 99th percentile over the median", NOBODY)
JOIN_TOGETHER = CostName(
    "<loop>.join_together",
    "seconds",
    _TABLE,
    "what the first iteration of a batch takes longer",
    NOBODY,
    least=None,
    most=LONGEST,
)
AFTER_IDLE = CostName(
    "<loop>.after_idle.<seconds>",
    "seconds",
    _VALUE,
    "what a request takes longer after so long without work",
    NOBODY,
    least=None,
    most=LONGEST,
)
SLO_CONSTANT = CostName("slo_constant", "seconds", _VALUE, "what the driver adds to a request's solo latency", NOBODY)
LOGGED: tuple[Form, ...] = ("value", "quantiles")
CLIENT_TO_FIRST = CostName("client_to_first", "seconds", LOGGED, "logged: client to first stage", NOBODY)
FIRST_RESIDENCE = CostName("first_residence", "seconds", LOGGED, "logged: in the first stage", NOBODY)
FIRST_TO_LOOP = CostName("first_to_loop", "seconds", LOGGED, "logged: first stage to the loop's", NOBODY)
LOOP_TO_LAST = CostName("loop_to_last", "seconds", LOGGED, "logged: the loop's stage to the last", NOBODY)
LAST_RESIDENCE = CostName("last_residence", "seconds", LOGGED, "logged: in the last stage", NOBODY)
LAST_TO_CLIENT = CostName("last_to_client", "seconds", LOGGED, "logged: last stage to the client", NOBODY)
LAST_STAGE = CostName("last_stage", "seconds", _UPTO, "logged: the last stage, beside the loop", NOBODY)
CLOCKWORK_RATIO = CostName("clockwork_ratio", "ratio", LOGGED, "logged: Clockwork's batches over its tables", NOBODY)

#: All entries, in the order of the documents.
REGISTRY: tuple[CostName, ...] = tuple(value for value in globals().values() if isinstance(value, CostName))


def check(costs: Mapping[str, Cost], modules: Mapping[str, bool], *, tokens: bool) -> None:
    """Raise `Fault` for the first of *costs* that is not in the registry, or not as it says.

    *modules* are those of the profile without a language model's, with whether each is a loop; *tokens* is whether it
    is of a language model too.
    """
    known = Known(tuple(modules), tuple(m for m, loop in modules.items() if loop), tokens)
    found = {name: find(name, known) for name in costs}  # a misspelt name before what misses it
    for name, (entry, given) in found.items():
        fault = entry.faults(name, given, costs[name], costs.keys())
        if fault is not None:
            raise fault


#: What costs were called once, for whoever has a profile of then.
RENAMED = {"pace": "recent_load"}  # words of a name
RENAMED_WHOLE = {"host.pace": "host.slowdown", "host.pace_lasts": "host.slowdown_lasts"}


def find(name: str, known: Known) -> tuple[CostName, dict[str, str]]:
    """The entry of *name*, and the arguments in it. Raises `Fault` naming the nearest name if there is none."""
    for entry in REGISTRY:
        given = entry.match(name, known)
        if given is None or not entry.may_stand(known):
            continue
        policy = given.get("policy", "")
        near = difflib.get_close_matches(policy, [p for p in POLICIES if len(p) > 5], 1, 0.85)
        if near and not policy.startswith(near[0]):
            raise Fault(f"unknown cost {name!r}", ("costs",), name.removesuffix(policy) + near[0])
        return entry, given
    now = RENAMED_WHOLE.get(name) or ".".join(RENAMED.get(part, part) for part in name.split("."))
    if now != name:
        raise Fault(f"the cost {name!r} has another name now", ("costs",), now)
    names, words = _names(name, known), sorted(re.split("[._]", name))
    same = [
        n for n in names if n.split(".")[0] == name.split(".")[0] and sorted(re.split("[._]", n)) == words
    ]  # in another order
    module, _, rest = name.partition(".")
    own = [n.removeprefix(f"{module}.") for n in _names(name, known, read=True) if n.startswith(f"{module}.")]
    close = same or [f"{module}.{n}" for n in difflib.get_close_matches(rest, own, 1)]
    close = close or difflib.get_close_matches(name, names, 1, 0.85 if own else 0.6)
    nearest = ", ".join(f"{module}.{n}" for n in difflib.get_close_matches(rest, own, 3, 0.0))
    right = close[0] if close else nearest or "a name of those in docs/reference/profiles.md"
    raise Fault(f"unknown cost {name!r}", ("costs",), right)


def _names(name: str, known: Known, *, read: bool = False) -> list[str]:
    """Names that there may be in such a profile, with the numbers that stand in *name*; or those that are *read*."""
    numbers = {*re.findall(r"\d+(?:\.\d+)?", name), "2"}
    found = []
    for entry in REGISTRY:
        if not entry.may_stand(known) or (read and entry.read_by == NOBODY):
            continue
        choices = [
            POLICIES if a == "policy" else numbers if a in NUMBERS else known.choices(a) for a in entry.arguments
        ]
        names = (entry(*words) for words in itertools.product(*choices))
        found += [name for name in names if entry.match(name, known) is not None]
    return found
