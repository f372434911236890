"""vLLM's own scheduler with pipeline parallelism, driven with a step a stage in flight as its engine core does, and
our engine with stages decide the same, step by step, and tokens come out at the same times."""

import pytest
from no_gpu import replay_ahead, scheduler
from servetwin.core.llm.serving.worker import Host
from test_prefix_caching import SETTINGS, shared, turns
from test_same_decisions import seconds, simulated

#: Shares of a step's time: of two equal stages, of three and of four of which one is slower.
SHARES = {2: (0.5, 0.5), 3: (0.3, 0.4, 0.3), 4: (0.25, 0.25, 0.3, 0.2)}


def check(folder, asked, name, stages, caching):
    settings, shares = SETTINGS[name], SHARES[stages]
    vllm = scheduler(folder, **settings, caching=caching, stages=stages)
    real, times, _ = replay_ahead(vllm, asked, seconds, shares=shares)
    host = Host(lambda sequences: 0.0, 0.0, ahead=True)
    own = {"enable_prefix_caching": caching, "pipeline_parallel_size": stages}
    log = simulated(asked, settings, host, shares=shares, **own)
    theirs = [(m.prefill, len(m.decode), m.context, set(m.preempted)) for m in real]
    differ = [i for i, (a, b) in enumerate(zip(theirs, log.steps, strict=False)) if a != b]
    assert not differ, f"{len(differ)} of {len(theirs)} ({differ[0]}): {theirs[differ[0]]} {log.steps[differ[0]]}"
    assert log.times.keys() == times.keys()
    assert all(log.times[i] == pytest.approx(times[i], abs=1e-9) for i in times)
    return sum(len(lost) for *_, lost in theirs)


SOME = [
    ("roomy", shared, 2, False),
    ("roomy", turns, 4, True),
    ("chunks", shared, 3, True),
    ("chunks", turns, 2, False),
    ("tight", shared, 2, True),
    ("tight", turns, 4, False),
    ("tighter", shared, 3, False),
    ("tighter", turns, 2, True),
]


@pytest.mark.parametrize(("name", "kind", "stages", "caching"), SOME)
def test_it_decides_as_vllm_does(folder, name, kind, stages, caching):
    preempted = check(folder, kind(150, 7.0, seed=1), name, stages, caching)
    assert (preempted > 3) == (name in ("tight", "tighter"))


@pytest.mark.slow
@pytest.mark.parametrize("stages", SHARES)
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("kind", [shared, turns])
@pytest.mark.parametrize("name", SETTINGS)
def test_of_a_thousand_requests(folder, name, kind, stages, caching):
    check(folder, kind(1000, 7.0, seed=2), name, stages, caching)
