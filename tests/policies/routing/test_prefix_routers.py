"""Routers that know prefixes: more is found where prompts that begin alike meet, and load is not forgotten."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servetwin.core import BadInput, Module, Pipeline
from servetwin.core.llm import PromptContent, TokenRequest, prompt_of
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.policies.routing.cache_aware import CacheAware
from servetwin.policies.routing.prefix_affinity import PrefixAffinity
from servetwin.policies.routing.prefix_load import PrefixLoad

STAGE = Pipeline.chain(Module("llm", loop=True)).stages([["llm"]])[0]


def asked(group: int | None, prompt: int = 400, number: int = 0) -> TokenRequest:
    prefix = {"llm": PromptContent((("system", group),), 300)} if group is not None else None
    return TokenRequest(number, 0.0, {"llm": (prompt, 10)}, prefix=prefix)


def fleet(*present: int, found: tuple[int, ...] = ()) -> list[Any]:
    """Workers with so many requests, whose caches hold so much of any prompt."""
    holds = found or (0,) * len(present)
    return [
        SimpleNamespace(name=f"w{i}", stage=STAGE, present=n, found=lambda _, held=held: held)
        for i, (n, held) in enumerate(zip(present, holds, strict=True))
    ]


def test_a_router_learns_what_a_prompt_begins_with() -> None:
    prompt, content = prompt_of(asked(3), STAGE)
    assert (prompt, content.ids, content.tokens(prompt)) == (400, (("system", 3),), 300)  # type: ignore[union-attr]
    assert prompt_of(asked(None), STAGE) == (400, None)


def test_affinity_draws_a_worker_for_what_begins_alike() -> None:
    router = PrefixAffinity(bound=None)
    chosen = {
        group: {router.route(asked(group), fleet(*load), 0.0).name for load in ((0, 9, 5), (7, 1, 0))}
        for group in range(30)
    }
    assert {len(names) for names in chosen.values()} == {1}  # whatever the load
    assert len(set.union(*chosen.values())) == 3
    # A worker less, and only its groups move.
    fewer = {group: router.route(asked(group), fleet(0, 0), 0.0).name for group in range(30)}
    assert all({fewer[group]} == chosen[group] for group in range(30) if chosen[group] != {"w2"})


def test_affinity_is_bounded_by_load() -> None:
    router = PrefixAffinity(bound=1.25)
    home = router.route(asked(1), fleet(0, 0, 0), 0.0).name
    place = int(home[1])
    # Of 12 with this one each may have 5.
    busy = [4 if i == place else 3 for i in range(3)]
    assert router.route(asked(1), fleet(*busy), 0.0).name == home
    crowded = [9 if i == place else 1 for i in range(3)]
    assert router.route(asked(1), fleet(*crowded), 0.0).name != home
    assert router.route(asked(None), fleet(4, 2, 3), 0.0).name == "w1"


def test_cache_aware_remembers_what_was_sent_until_load_is_uneven() -> None:
    router = CacheAware(difference=5, ratio=1.5, most=4)
    assert router.route(asked(1), fleet(2, 0, 1), 0.0).name == "w1"
    assert router.route(asked(1), fleet(0, 5, 1), 0.0).name == "w1"  # not more than 5 apart
    assert router.route(asked(1), fleet(0, 6, 1), 0.0).name == "w0"
    assert router.route(asked(1), fleet(3, 2, 0), 0.0).name == "w1"  # w0 and w1 were sent it
    assert router.route(asked(1, prompt=1001), fleet(3, 2, 0), 0.0).name == "w2"  # 300 of 1001 are too little
    for group in range(2, 6):
        router.route(asked(group), fleet(0, 1, 1), 0.0)
    assert len(router.sent) == 4
    assert router.route(asked(1), fleet(1, 1, 0), 0.0).name == "w2"  # forgotten


def test_prefix_load_weighs_what_caches_hold_against_load() -> None:
    # The mean of (4, 2, 0) is 2: relative loads are 1, 0 and -1, and 320 of 400 tokens are 0.8.
    for beta, name in ((0.0, "w0"), (0.39, "w0"), (0.41, "w2"), (2.0, "w2")):
        assert PrefixLoad(beta).route(asked(1), fleet(4, 2, 0, found=(320, 0, 0)), 0.0).name == name
    router = PrefixLoad()
    assert [router.route(asked(None), fleet(1, 1, 1), 0.0).name for _ in range(4)] == ["w0", "w1", "w2", "w0"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PrefixAffinity(tokens=0), "tokens is 0"),
        (lambda: PrefixAffinity(bound=0.5), "bound is 0.5"),
        (lambda: CacheAware(ratio=0.5), "ratio is 0.5"),
        (lambda: PrefixLoad(-1), "beta is -1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()


FLEET = [
    ("policy", "vllm-v1"),
    ("workload.draws", "seeded"),
    ("workload.requests", 300),
    ("workload.arrivals", {"process": "poisson", "rate": 6.0}),
    ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 500, "high": 700}),
    ("workload.lengths.llm.output", {"draw": "uniform", "low": 20, "high": 60}),
    ("workload.lengths.llm.prefix", {"draw": "shared", "groups": 40, "tokens": 480}),
    ("deployment.workers.0.engine.enable_prefix_caching", True),
    ("deployment.replicas", 4),
]


def summary(router: Any, *more: Any) -> dict[str, Any]:
    return build(load("opt-13b-a6000", [*FLEET, ("deployment.router", router), *more])).play().as_dict()


def test_more_is_found_where_prompts_that_begin_alike_meet() -> None:
    names = ("round_robin", "jsq", "prefix_affinity", "cache_aware", "prefix_load")
    hits = {name: summary(name)["prefix_cache_hits"] for name in names}
    most = 480 * (300 - 40)  # all but the first of each group
    for name in ("prefix_affinity", "cache_aware", "prefix_load"):
        assert most >= hits[name] > max(hits["round_robin"], hits["jsq"]) + 0.1 * most
    alone = summary({"name": "prefix_affinity", "params": {"bound": None}})
    assert most >= alone["prefix_cache_hits"] > 0.98 * most


ASKS = """
from servetwin.core.routing import Router


class Asks(Router):
    def start(self, workers, seed):
        self.told = []

    def route(self, request, workers, now):
        self.told.append(max(worker.found(request) for worker in workers))
        return workers[0]
"""


def test_what_caches_hold_is_told_as_stale_as_all_else(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    told = {}
    for stale in (0.0, 1000.0):
        router = {"name": str(tmp_path / "asks.py"), "stale": stale}
        made = build(load("opt-13b-a6000", [*FLEET, ("workload.requests", 60), ("deployment.router", router)]))
        made.play()
        told[stale] = made.loop.router.usual.told  # type: ignore[attr-defined]
    assert told[1000.0] == [0] * 60  # what was there when the first came
    assert set(told[0.0]) == {0, 480}
