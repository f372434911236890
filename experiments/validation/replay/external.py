"""Runs that somebody else measured on vLLM, repeated in simulation by a profile that nobody measured here.

A file of such a run (``measured/<device>/external-*.json.gz``) says who measured it, the engine's settings, of each
request when it came and its lengths, and when its first and its last token came out. The profile is made of tables of
the same source alone (`servetwin.profiles.importing`); nothing is fitted to the run.

Scored are the means of ttft, tpot and e2el, and goodput under 25 limits: ttft at the measured `TTFT` percentiles,
tpot at the `TPOT` ones. Where what was measured is held out, the file has inputs only, and there is a prediction.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import ConfigDict, Field
from servetwin.core import BadInput, Module, Pipeline, Recorder, Request, ServingLoop
from servetwin.core.files import plain
from servetwin.core.llm import EngineLimits, TokenRequest, TokenTask, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.client import play
from servetwin.profiles import load
from typing_extensions import TypedDict

from ...assembly.llm_workers import host_ahead
from ...registry import policy_registry
from ..comparison.run_files import OPEN, Time, checked

#: Percentiles of what was measured at which the limits lie.
TTFT, TPOT = (20, 35, 50, 65, 80), (30, 50, 70, 90, 99)
METRICS = ("ttft", "tpot", "e2el")

RIGHT = "a run that ServeTwin packed"


@dataclass(frozen=True)
class Latencies:
    """Of each request of a run, in its order, in seconds."""

    ttft: np.ndarray
    tpot: np.ndarray
    e2el: np.ndarray

    def within(self, ttft: float, tpot: float) -> int:
        """How many requests keep both limits."""
        return int(np.sum((self.ttft <= ttft) & (self.tpot <= tpot)))


#: What is no key of the file is refused: there is no place for it.
CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Count = Annotated[int, Field(ge=1, le=10**9)]
#: Arrival, prompt, output, and, where that is not held out, first and last token.
_Row = (
    Annotated[tuple[Time, _Count, _Count], Field(strict=False)]
    | Annotated[tuple[Time, _Count, _Count, Time, Time], Field(strict=False)]
)


class _Engine(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    max_num_batched_tokens: _Count
    max_num_seqs: _Count
    block_size: _Count
    scheduler_reserve_full_isl: bool
    enable_prefix_caching: bool
    async_scheduling: bool


class _Packed(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    name: str
    source: str
    engine: _Engine
    profile: str
    requests: Annotated[list[_Row], Field(min_length=1)]
    blocks: NotRequired[_Count]
    authors_error: NotRequired[dict[str, Time]]


@dataclass(frozen=True)
class External:
    """A run: *source* and *authors_error* (percent, by metric) as published, the *engine* in vLLM's names, *blocks*
    as it reported them (None: computed), *profile* by name, *requests* as (arrival, prompt, output), and what was
    *measured* (None: it is held out)."""

    name: str
    source: str
    engine: dict[str, Any]
    profile: str
    requests: tuple[tuple[float, int, int], ...]
    measured: Latencies | None
    blocks: int | None = None
    authors_error: dict[str, float] | None = None

    @property
    def limits(self) -> EngineLimits:
        engine, data = self.engine, load(self.profile).token_data
        tokens, sequences = engine["max_num_batched_tokens"], engine["max_num_seqs"]
        return EngineLimits(
            blocks=self.blocks or data.blocks(max_batched_tokens=tokens, max_sequences=sequences),
            block_size=engine["block_size"],
            max_batched_tokens=tokens,
            max_sequences=sequences,
            whole_prompt=engine["scheduler_reserve_full_isl"],
            keep_freed=engine["enable_prefix_caching"],
        )


def is_external(path: Path) -> bool:
    """Whether *path* is a file of a run that somebody else measured."""
    return path.name.startswith("external-")


def read(path: Path) -> External:
    """A file that `pack` wrote. Raises `BadInput`."""
    try:
        with gzip.open(plain(path), "rt", encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise BadInput(f"is no run as it should be: {error}", where=str(path), right=RIGHT) from None
    checked(data, _Packed, str(path), RIGHT)
    rows = data.pop("requests")
    if len({len(row) for row in rows}) > 1:
        what = "of some requests it says when their tokens came out, and of others not"
        raise BadInput(what, where=str(path), right=RIGHT)
    measured = _measured(rows) if len(rows[0]) == 5 else None
    return External(**data, requests=tuple((row[0], row[1], row[2]) for row in rows), measured=measured)


def _measured(rows: Sequence[Sequence[float]]) -> Latencies:
    arrival, _, output, first, last = (np.array(column) for column in zip(*rows, strict=True))
    return Latencies(first - arrival, (last - first) / np.maximum(output - 1, 1), last - arrival)


class Ends(Recorder):
    """Keeps when the first and the last token of each request came out."""

    wants_token_times = True

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[int, tuple[float, float]] = {}

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        (task,) = request.tasks
        if isinstance(task, TokenTask) and task.first_token is not None:
            self.ends[request.id] = (task.first_token, now)


def simulate(run: External) -> Latencies:
    """The requests of *run*, served in simulated time by its profile under vLLM's own policy."""
    from servetwin.sim import SimExecutor
    from servetwin.sim.llm.lane import TokenTiming

    profile = load(run.profile)
    table = profile.tokens("measured")
    stage = Pipeline.chain(Module("decode", loop=True)).stages([["decode"]])[0]
    policy: Any = policy_registry.make("vllm-v1", {})
    view = TokenView(
        stage,
        run.limits,
        estimate_prefill=table.prefill,
        estimate_decode=table.decode,
        estimate_step=table.step,
        name=run.profile,
    )
    host = host_ahead(profile) if run.engine["async_scheduling"] else None
    log = Ends()
    executor = SimExecutor(lambda _: TokenTiming(table))
    loop = ServingLoop([stage], [TokenWorker(stage, policy, view, host=host)], executor, log)
    sent = enumerate(run.requests)
    play(loop, iter(TokenRequest(i, at, {"decode": (n, out)}, {"decode": out}) for i, (at, n, out) in sent))
    executor.run_until_idle()
    rows = [(at, n, out, *log.ends[i]) for i, (at, n, out) in enumerate(run.requests)]
    return _measured(rows)


@dataclass(frozen=True)
class Goodput:
    """Requests that kept limits of *ttft* and *tpot* seconds, as measured and as simulated."""

    ttft: float
    tpot: float
    measured: int
    simulated: int


def goodput(run: External, simulated: Latencies) -> Iterator[Goodput]:
    """Under each of the 25 limits. Raises `BadInput` if nothing was measured."""
    if run.measured is None:
        raise BadInput("what was measured is held out", where=run.name, right="a run with measurements")
    for a in TTFT:
        for b in TPOT:
            ttft, tpot = (float(np.percentile(x, p)) for x, p in ((run.measured.ttft, a), (run.measured.tpot, b)))
            yield Goodput(ttft, tpot, run.measured.within(ttft, tpot), simulated.within(ttft, tpot))


@dataclass(frozen=True)
class Means:
    """A statistic of a metric in seconds, as measured (None: held out) and simulated, and how far the authors' own
    simulator is off, in percent."""

    what: str
    measured: float | None
    simulated: float
    authors_error: float | None = None

    @property
    def off(self) -> float | None:
        """Percent by which the simulation is off."""
        return 100.0 * (self.simulated / self.measured - 1.0) if self.measured else None


def means(run: External, simulated: Latencies) -> list[Means]:
    """Mean, median and 99th percentile of each metric."""
    found = []
    for name in METRICS:
        for what, of in (("mean", np.mean), ("median", np.median), ("p99", lambda x: np.percentile(x, 99))):
            was = float(of(getattr(run.measured, name))) if run.measured else None
            own = (run.authors_error or {}).get(name) if what == "mean" else None
            found.append(Means(f"{what} {name}", was, float(of(getattr(simulated, name))), own))
    return found


def pack(folder: Path, facts: dict[str, Any], out: Path) -> None:
    """Write the run in a *folder* of LLMServingSim's, with its *facts* (all of `External` but requests), to *out*."""
    measured = folder / "requests.jsonl"
    if measured.is_file():
        lines = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda r: r["arrival_time"])
        # The client's clock and the engine's are two: what passes between them is least where nothing is in the way.
        apart = min(r["queued_ts"] - r["arrival_time"] for r in lines)
        begin = lines[0]["arrival_time"]
        rows: list[list[float]] = []
        for r in lines:
            ends = (r[name] - apart - begin for name in ("first_token_ts", "last_token_ts"))
            times = [round(x, 6) for x in (r["arrival_time"] - begin, *ends)]
            rows.append([times[0], r["input_toks"], r["output_toks"], *times[1:]])
    else:
        text = (folder / "requests_inputs.csv").read_text(encoding="utf-8").splitlines()[1:]
        cells = [line.split(",") for line in text]
        rows = [[float(at), int(n), int(output)] for at, n, output in cells]
    with out.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write(json.dumps({**facts, "requests": rows}, separators=(",", ":")).encode())


def prediction(run: External) -> dict[str, Any]:
    """What the simulation says of *run*, to be kept before anybody looks at what was measured: seconds by request,
    and their means."""
    simulated = simulate(run)
    found = {m.what: round(m.simulated, 6) for m in means(run, simulated)}
    columns = {name: [round(float(x), 6) for x in getattr(simulated, name)] for name in METRICS}
    return {"run": run.name, "profile": run.profile, "digest": load(run.profile).digest, "seconds": found, **columns}


if __name__ == "__main__":  # python -m ... RUN.json.gz: the prediction of a run, as JSON
    sys.stdout.write(json.dumps(prediction(read(Path(sys.argv[1])))) + "\n")
