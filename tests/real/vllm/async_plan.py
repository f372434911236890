"""What `async_campaign` does with which engine, and which part of it is whose."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.real.vllm.engine import EngineOptions
from servetwin.real.vllm.profiling.measuring.async_steps import SMALL_ROTATION, Rotation

#: Sizes for which steps are captured as CUDA graphs, in tokens.
GRAPHS = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(288, 513, 32))
LARGER = tuple(range(576, 1025, 64))
FEW = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
#: Tokens that a request generates.
OUTPUT = (16, 48)
SLOS = TIGHT, LOOSE = "3+1.5", "5+2"
#: Requests of a run come for so many seconds at least, while they are not three times as many as planned: the same
#: run with 240 of them differs from its repeats by two points.
LASTING = 15.0
#: Rates as shares of an SLO's knee, what matters most first, by SLO and cv. At the loose one they keep clear of those
#: at which NeuStream goes from one mood to another: there simulations of the same run differ by 16 % in mean ttft.
SHARES: dict[tuple[str, float], tuple[float, ...]] = {
    (TIGHT, 1): (1.0, 0.7, 1.2),
    (TIGHT, 4): (0.7, 1.0),
    (LOOSE, 1): (1.0, 0.5, 1.35),
    (LOOSE, 4): (0.5, 0.85),
}
#: Seconds for which requests come in the runs of a shard, by SLO and cv: in simulation ttft's mean and median then
#: differ by no more than 1 % between runs of the same requests, but for `EVERYWHERE`.
LONG: dict[tuple[str, float], float] = {(TIGHT, 1): 95.0, (TIGHT, 4): 175.0, (LOOSE, 1): 60.0, (LOOSE, 4): 110.0}
#: The run for which one cannot tell (mean ttft 3 %, median 5 %): every shard makes it, for so many seconds.
EVERYWHERE, EVERYWHERE_LASTING = ("neustream-llm", LOOSE, 1.0, 1), 90.0
#: What a run takes beside its requests: its client starts, and what it left is written.
AROUND = 2.0
#: The traffic of OPT-13B's profile, whose runs are to be predicted closely.
TRAFFIC = ((0.12, 1.0), (0.3, 1.0), (0.5, 1.0), (0.7, 1.0), (0.9, 1.0), (0.15, 4.0), (0.45, 4.0), (0.8, 4.0))
#: Pairs of events for the GPU times of a run's graphs: later graphs have none.
EVENTS = 9000


def rates_between(low: float, high: float) -> tuple[float, ...]:
    """Rates about 12 % apart."""
    return tuple(round(low * 1.12**i, 1) for i in range(1 + round(np.log(high / low) / np.log(1.12))))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done with an engine: seconds of its *profile*, *requests* a run (the first of these numbers with which
    what matters fits into the time), the *rates* among which its knees are looked for, whether only a few runs are
    made (*small*), and the *earlier* profile that stands in for this one's should that come to nothing."""

    options: EngineOptions
    rotation: Rotation
    profile: float
    requests: tuple[int, ...]
    rates: tuple[float, ...]
    small: bool = False
    earlier: str | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of a campaign that one of *of* processes makes, number *k* from 0."""

    k: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        k, of = map(int, text.split("/"))
        if not 0 <= k < of:
            raise ValueError(text)
        return cls(k, of)

    def agreed(self, folder: Path, mine: dict[str, float]) -> dict[str, float]:
        """The knees of all shards: those of whoever writes them first into the folder above *folder*."""
        file, own = folder.parent / "knees.json", folder / "knees.json"
        own.write_text(json.dumps(mine))
        with contextlib.suppress(FileExistsError):
            os.link(own, file)  # whole or not at all
        return dict(json.loads(file.read_text()))

    def groups(self, groups: dict[Any, list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """Those of *groups* of runs that are this one's: the longest first, each to whom has the least so far."""
        seconds = {key: sum(cell["requests"][-1][0] + AROUND for cell in cells) for key, cells in groups.items()}
        loads, mine = [0.0] * self.of, []
        for key in sorted(groups, key=lambda key: -seconds[key]):
            k = loads.index(min(loads))
            loads[k] += seconds[key]
            if k == self.k:
                mine.append(groups[key])
        return mine


def plan_of(model: str, tensor_parallel: int, smoke: bool, tiny: bool) -> Plan:
    """The plan for *model*."""
    if tiny:
        options = EngineOptions(kv_bytes=64 << 20, max_sequences=64, max_batched_tokens=2048, asynchronous=True)
        return Plan(options, SMALL_ROTATION, 4.0, (40,), rates_between(20, 160))
    common: dict[str, Any] = {
        "model": model,
        "dtype": "float16",
        "max_model_len": 2048,
        "tensor_parallel": tensor_parallel,
        "graphs_for": "all",
        "asynchronous": True,
        "gpu_memory_utilization": 0.92,
    }
    if smoke:
        options = EngineOptions(max_batched_tokens=4096, max_sequences=128, graphs=FEW, **common)
        rotation = Rotation(
            prefill=(1, 32, 64, 128, 256, 384, 512, 1024, 2047),
            prompts=(1, 2),
            beyond=(),
            decode=(1, 4, 8, 16, 32, 64, 96),
            contexts=(40, 160),
            mixed=(64, 256, 448),
            mixed_prompts=(1,),
            mixed_sequences=(8, 32),
        )
        return Plan(options, rotation, 10.0, (60,), rates_between(4, 72), small=True)
    if model == "opt-13b":
        options = EngineOptions(max_batched_tokens=8192, max_sequences=256, graphs=GRAPHS + LARGER, **common)
        rotation = Rotation(traffic=TRAFFIC, traffic_share=0.6)
        earlier = "h100-long/opt-13b-tp1-0"
        return Plan(options, rotation, 200.0, (240, 200), rates_between(4, 72), earlier=earlier)
    rotation = Rotation(
        prefill=(1, 16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 768, 1024, 2047),
        prompts=(1, 2, 4),
        beyond=(),
        decode=(1, 2, 4, 8, 16, 24, 32, 48, 64),
        contexts=(40, 130, 260),
        mixed=(48, 112, 320, 512),
        mixed_prompts=(1, 2),
        mixed_sequences=(4, 16, 32),
    )
    options = EngineOptions(max_batched_tokens=2048, max_sequences=64, graphs=FEW, **common)
    return Plan(options, rotation, 65.0, (200, 150, 100), rates_between(1, 45), small=True)
