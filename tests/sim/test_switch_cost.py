"""The one thing that the artifact logged of its agents' engines: four prompts and four decode steps, one at a time.

Alternating or grouped makes no difference, on the GPU and here; and the simulated engine takes what was logged.
Source: the NeuStream artifact (github.com/Fjallraven-hc/NeuStream-AE, MIT licence), Multi-Agent/MatPlotAgent/
test_switch.py: five repetitions each, the mean of the last three.
"""

from __future__ import annotations

import pytest
from servetwin.core import Module, Pipeline, Recorder, ServingLoop
from servetwin.core.llm import EngineLimits, Step, TokenPolicy, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.client import play
from servetwin.profiles import load
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming

LOGGED = {
    ("rtx4090/codellama-7b", "alternating"): 0.25944073994954425,
    ("rtx4090/codellama-7b", "grouped"): 0.2588810125986735,
    ("rtx4090/llava-1.5-7b", "alternating"): 0.2584980328877767,
    ("rtx4090/llava-1.5-7b", "grouped"): 0.25813786188761395,
}


class OneByOne(TokenPolicy):
    """A prompt or a decode step of one request at a time."""

    def __init__(self, grouped: bool) -> None:
        self.grouped = grouped

    def decide(self, view: TokenView, now: float) -> Step:
        decoding = [task for task in view.running if task.decoding]
        if view.waiting and (self.grouped or not decoding):
            task = next(iter(view.waiting))
            return Step([(task, task.pending)])
        return Step(decode=decoding[:1])


def switching(profile: str, grouped: bool) -> tuple[float, str]:
    """Seconds until all is done, and what the steps were."""
    (stage,) = Pipeline.chain(Module("llm", loop=True)).stages([["llm"]])
    table = load(profile).tokens("measured")
    view = TokenView(stage, EngineLimits(blocks=1000), estimate_prefill=table.prefill, estimate_decode=table.decode)

    class Steps(Recorder):
        order = ""

        def batch(self, batch) -> None:
            super().batch(batch)
            self.order += "p" if batch.prefill else "d"

    recorder = Steps()
    executor = SimExecutor(lambda _: TokenTiming(table))
    loop = ServingLoop([stage], [TokenWorker(stage, OneByOne(grouped), view)], executor, recorder)
    play(loop, (TokenRequest(i, 0.0, {"llm": (501, 2)}, {"llm": 2}) for i in range(4)))
    executor.run_until_idle()
    return executor.now(), recorder.order


@pytest.mark.parametrize(("profile", "order"), LOGGED)
def test_a_series_takes_what_was_logged(profile: str, order: str) -> None:
    took, steps = switching(profile, order == "grouped")
    assert steps == {"alternating": "pdpdpdpd", "grouped": "ppppdddd"}[order]
    assert took == pytest.approx(LOGGED[profile, order], rel=0.01)


@pytest.mark.parametrize("profile", ["rtx4090/codellama-7b", "rtx4090/llava-1.5-7b"])
def test_switching_between_prefill_and_decode_is_free(profile: str) -> None:
    """It was logged as 0.2 %; the tables know no such cost, so here it is nothing."""
    alternating, _ = switching(profile, grouped=False)
    assert alternating == pytest.approx(switching(profile, grouped=True)[0], rel=1e-9)
    assert abs(LOGGED[profile, "alternating"] / LOGGED[profile, "grouped"] - 1) < 0.0025
