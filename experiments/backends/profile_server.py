"""``servetwin profile PROFILE --url URL``: what a server takes before its engine has a request, added to the profile
of that engine.

An idle server is asked for single tokens; what the profile says that its engine takes of that is taken off, and a
line over the tokens of the prompt is laid through what is left.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput
from servetwin.core.llm import TokenRequest
from servetwin.profiles import Profile, load
from servetwin.profiles.tables import costs
from servetwin.profiles.yaml_writer import text as text_of

from ..assembly.build import build
from ..spec.loading import load as experiment_of
from ..sweeps import tables
from ..validation.replay.external import Ends
from .profile import Progress, check_target

#: Prompts that are sent, in tokens: as many of these as the engine computes in one step.
LENGTHS = (16, 64, 256, 512, 1024, 2048, 4096, 8192)
#: How often each of them.
ROUNDS = 7
#: Seconds between two requests in simulation, in which each has ended.
APART = 60.0


@dataclass(frozen=True)
class Found:
    """What a server takes: *constant* seconds and *each* more per token of the prompt. *points* are, for each length,
    (tokens, measured until the first token, of it the engine by its profile, what the line says of the rest)."""

    profile: Profile
    constant: float
    each: float
    points: tuple[tuple[int, float, float, float], ...]


def measure_server(
    profile: str,
    url: str,
    out: Path,
    *,
    name: str | None = None,
    model: str | None = None,
    key: str | None = None,
    text: bool = False,
    lengths: Sequence[int] = LENGTHS,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Found:
    """Write *profile*, with what the idle server at *url* takes before that engine (``server.before_engine``), to
    *out*, which must not exist; the file appears whole or not at all.

    *name* is the new profile's, otherwise the old one's with ``-served`` behind it; *model* is what the server calls
    its model, *key* its API key. Prompts are token ids, or *text*, which the server makes tokens of. Raises
    `BadInput`.
    """
    from servetwin.real.vllm.profiling.measuring.server_before import ask_idle, line_through

    known = load(profile)
    if known.data.tokens is None:
        raise BadInput(
            f"{profile} is of no language model", where="--url", right="the profile of the server's engine"
        )
    if costs.BEFORE_ENGINE() in known.costs:
        what = f"{profile} has {costs.BEFORE_ENGINE()} already"
        raise BadInput(what, where="--url", right="the profile of the engine alone")
    name = name or f"{known.name}-served"
    check_target(out, name)
    engine = known.data.tokens.engine
    most = min(engine.max_batched_tokens or LENGTHS[-1], (engine.max_model_len or LENGTHS[-1]) - 2)
    fitting = [n for n in lengths if n <= most]
    if not fitting:
        raise BadInput(
            f"the engine computes {most} tokens in a step", where=profile, right=f"{min(lengths)} at least"
        )

    def tell(done: int, of: int) -> None:
        if progress is not None:
            progress("requests to an idle server", done, of)

    asked = ask_idle(url, fitting, rounds, model=model, key=key, text=text, progress=tell)
    tokens = sorted({a.prompt for a in asked})
    alone = dict(zip(tokens, first_tokens_alone(profile, tokens), strict=True))
    rest = [(a.prompt, a.seconds - alone[a.prompt]) for a in asked]
    constant, each = (round(x, 9) for x in line_through(rest))
    points = tuple(
        (n, statistics.median(a.seconds for a in asked if a.prompt == n), alone[n], constant + each * n)
        for n in tokens
    )
    content = _with_cost(known, name, (constant, each), len(asked), text)
    written = text_of(content, shlex.join(["servetwin", *sys.argv[1:]]))
    tables.make_folder(out.parent)
    tables.write_text(out, written)
    return Found(load(str(out)), constant, each, points)


def first_tokens_alone(profile: str, prompts: Sequence[int]) -> list[float]:
    """Seconds until the first token of requests with these *prompts* that are served alone by the engine of
    *profile*, without noise."""
    spec: dict[str, Any] = {
        "name": "alone",
        "pipeline": {"modules": {"llm": {"kind": "llm"}}},
        "workload": {
            "requests": len(prompts),
            "arrivals": {"process": "gamma", "rate": 1.0, "cv": 1.0},
            "lengths": {
                "llm": {"prompt": {"draw": "constant", "tokens": 1}, "output": {"draw": "constant", "tokens": 1}}
            },
        },
        "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 1e6, "tpot_ms": 1e6}},
        "policy": {"name": "vllm-v1"},
        "deployment": {
            "devices": {"gpu0": profile},
            "workers": [{"modules": ["llm"], "device": "gpu0", "limit": 1, "engine": {"whole_prompt": True}}],
        },
        "time": {"noise": False, "transport": False},
    }
    log = Ends()
    made = build(experiment_of(spec), log)
    made.source = iter(TokenRequest(i, APART * i, {"llm": (n, 1)}, {"llm": 1}) for i, n in enumerate(prompts))
    made.play()
    return [log.ends[i][0] - APART * i for i in range(len(prompts))]


def _with_cost(known: Profile, name: str, line: tuple[float, float], samples: int, text: bool) -> dict[str, Any]:
    """The content of *known* as a file, called *name*, with the cost."""
    content: dict[str, Any] = known.data.model_dump(mode="json", exclude_none=True, exclude_unset=True, by_alias=True)
    content["name"] = name
    cost = {
        "meaning": "from sent by the client until the engine has the request, and back with its first token",
        "unit": "seconds",
        "line": {"constant": line[0], "per_request": line[1]},
        "statistic": "line through the medians of each length of prompt",
        "samples": samples,
        "how": f"an idle server, single requests, prompts sent as {'text' if text else 'token ids'}: until the first "
        "token, less what the engine takes by this profile",
        "source": {"file": "real/vllm/profiling/measuring/server_before.py"},
    }
    content["costs"] = {**content.get("costs", {}), costs.BEFORE_ENGINE(): cost}
    return content
