"""Measures a language model on vLLM by steps of all compositions and of requests at random; others judge it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from ..engine import VllmEngine
from .fitting.step_profile import MEMORY
from .measuring import blind_traffic
from .measuring.compositions import Player
from .measuring.device_steps import Steps, all_samples, steps_of
from .measuring.rounds import play_rounds
from .measuring.step_cells import Cells, Limits, cells_for

#: The share of the time for steps of requests at random that a profile is made of.
REQUESTS = 0.16


def graphs_of(engine: VllmEngine) -> tuple[tuple[int, ...], str]:
    """The sizes of the engine's CUDA graphs in tokens, and vLLM's word for how it uses them."""
    config = engine.engine.vllm_config
    if config.model_config.enforce_eager:
        return (), "none"
    compilation = config.compilation_config
    mode = str(getattr(compilation.cudagraph_mode, "name", compilation.cudagraph_mode))
    return (() if mode == "NONE" else tuple(sorted(compilation.cudagraph_capture_sizes or ()))), mode


def described(engine: VllmEngine) -> dict[str, Any]:
    """What `step_profile.section` wants to know of *engine*."""
    graphs, mode = graphs_of(engine)
    return {**engine.describe(), "graphs": graphs, "mode": mode}


def compose(
    engine: VllmEngine,
    seconds: float,
    judged: float,
    progress: Callable[[str], None] = lambda _: None,
    *,
    seed: int = 1,
    loads: Sequence[blind_traffic.Load] = blind_traffic.LOADS,
    made_of: Sequence[blind_traffic.Load] = blind_traffic.MADE_OF,
    cells: Cells | None = None,
) -> tuple[list[Steps], list[float]]:
    """Make steps of all compositions, and of requests *made_of*, for so many *seconds*, and serve the traffic *loads*
    for *judged* seconds: all parts, and what taking requests in took. The first round is made as far as the time
    goes, and points in doubt again (`rounds`)."""
    graphs, _ = graphs_of(engine)
    player, rng = Player(engine, watch=True), random.Random(seed)
    options = engine.options
    limits = Limits(options.max_batched_tokens, options.max_sequences, options.max_model_len, player.room)
    cells = cells or cells_for(graphs, limits)
    with engine.undisturbed():
        parts = play_rounds(
            lambda part, until: steps_of(player.play(part, until)),
            cells,
            limits,
            (1.0 - REQUESTS) * seconds,
            graphs=max(graphs, default=0),
            memory=MEMORY,
            rng=rng,
            progress=progress,
        )
        found = all_samples(parts, max(graphs, default=0), MEMORY)
        intake: list[float] = []
        for some, time, kind, of in ((made_of, REQUESTS * seconds, "requests", 11), (loads, judged, "traffic", 7)):
            served, took = blind_traffic.play_loads(engine, player.clock, found, time, progress, some, kind, of)
            parts += served
            intake += took
    return parts, intake
