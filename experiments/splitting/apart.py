"""What can be simulated a replica at a time, and doing so.

Where a router is *static* (`servetwin.core.routing.Router.static`), nothing that happens at one engine shows at
another: each gets the same requests at the same times whether the others are simulated or not. So each goes by
itself, as numbers if its policy allows that (`servetwin.sim.llm.columns`), and what they counted is added up. Which
way it was shows in nothing but the time that it takes; `tests/experiments/splitting` compare to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol, cast

from servetwin.core import Batch, Recorder, Request, ServeTwinError, ServingLoop, Summary, Worker
from servetwin.core.isolation.answers import fault
from servetwin.core.isolation.code_inspection import own
from servetwin.core.isolation.integrity import comes_along
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.routing import Router
from servetwin.core.serving.dispatch import state_of
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.request_columns import TokenColumns

from ..registry import router_registry
from ..spec.experiment import Experiment
from .dealing import Dealt, chooser

if TYPE_CHECKING:
    from servetwin.core.llm import TokenDeadlines
    from servetwin.sim import SimExecutor
    from servetwin.sim.fleets.epochs import Exchange

#: Why a run with records is not split.
RECORDS = "records of single requests and batches are kept"

#: Workers that have served nothing yet, and what they compute on.
Remake = Callable[[], "tuple[list[Worker], SimExecutor]"]


class Metering(Protocol):
    """What is wanted of `servetwin.experiments.assembly.costs.Meter`."""

    def like(self, workers: Sequence[Worker]) -> Metering: ...
    def hearing(self, hear: Callable[[Batch], None]) -> Callable[[Batch], None]: ...
    def busy(self) -> dict[str, float]: ...


class Built(Protocol):
    """What is wanted of `servetwin.experiments.assembly.build.Run`."""

    experiment: Experiment
    loop: ServingLoop
    executor: SimExecutor
    source: Iterator[Request]
    recorder: Recorder
    sessions: Any

    @property
    def remake(self) -> Remake: ...
    @property
    def redraw(self) -> Callable[[], Iterator[Request]] | None: ...
    @property
    def meter(self) -> Metering | None: ...


def why_whole(run: Built, *, looked_at: bool = False) -> str | None:
    """Why the replicas of *run* are not simulated one by one; None if they can be. *looked_at*: their router may look
    at how they stand."""
    loop, recorder = run.loop, run.recorder
    devices = [worker.device for worker in loop.workers]
    routers = loop.dispatcher.routers if loop.dispatcher is not None else []
    dynamic = next((type(router).__name__ for router in routers if not router.static), None)
    heard = run.meter is None and loop.hear_batch != recorder.of_batches()
    found = [
        (len(loop.workers) < 2, "there is one worker"),
        (
            len(loop.serving) > 1 or not all(type(w) is TokenWorker for w in loop.workers),
            "not all are engines of one model",
        ),
        (len(set(devices)) < len(devices), "workers share a device"),
        (run.experiment.deployment.faults is not None, "devices and workers fail"),
        (loop.fleet is not None, "replicas come and go"),
        (run.executor.cards, "models share cards"),
        (bool(loop.handovers), "requests are handed over between engines"),
        (run.sessions is not None, "when requests are sent hangs on answers"),
        (run.experiment.system.stop_after is not None, "the run is cut off after its last request"),
        (dynamic is not None and not looked_at, f"the router {dynamic} looks at how workers stand"),
        (type(run.source) is not TokenColumns, "requests say more than lengths and a class"),
        (loop.budget is not None, "the SLO is shared out among stages"),
        (
            any(w.engine.options for w in run.experiment.deployment.workers if w.engine),
            "engines have options of their own",
        ),
        (not all(comes_along(type(own(w.policy))) for w in loop.workers), "its policy does not come with ServeTwin"),
        (type(recorder) is not Recorder or heard, RECORDS),
        (type(recorder.summary) is not TokenSummary, "tokens are counted in a window of time"),
    ]
    return next((why for holds, why in found if holds), None)


def why_one_process(run: Built) -> str | None:
    """Why the replicas of *run*, behind a router that looks, are not simulated as numbers in several processes; None
    if they can be: the router looks every so many seconds, and each process serves some until then."""
    routers = run.loop.dispatcher.routers if run.loop.dispatcher is not None else []
    looks = next((type(router).__name__ for router in routers if not router.static), None)
    if why := why_whole(run, looked_at=True):
        return why
    if looks is not None and not any(chosen.stale for chosen in run.experiment.deployment.routings.values()):
        return f"the router {looks} looks at how workers stand for each request (it has no stale)"
    return _why_not_as_numbers(run)


def _why_not_as_numbers(run: Built) -> str | None:
    """Why replicas that may be looked at, as far as `why_whole` says, are not each numbers that others look at."""
    router = run.loop.dispatcher.usual if run.loop.dispatcher is not None else None
    found = [
        (run.redraw is None, "requests are not those of the workload"),
        (run.meter is not None, "devices have prices, and the router looks"),
        (not run.recorder.wants_token_times, "nothing asks for the times of tokens"),
        (len(run.experiment.deployment.routings) > 1, "there are several routers"),
        (router is None or not comes_along(type(router)), "its router looks and does not come with ServeTwin"),
    ]
    return next((why for holds, why in found if holds), None)


def side_by_side(run: Built) -> bool:
    """Serve the requests of *run* by replicas side by side, each as numbers, behind a router that looks
    (`servetwin.sim.fleets`); whether that could be done. If not, nothing of *run* has been touched."""
    dispatcher = run.loop.dispatcher
    if (
        dispatcher is None
        or dispatcher.usual.static
        or _why_not_as_numbers(run) is not None
        or why_whole(run, looked_at=True) is not None
    ):
        return False
    return some_side_by_side(run, run.recorder.summary) is not None


def some_side_by_side(
    run: Built, summary: Summary, mine: Collection[int] | None = None, exchange: Exchange | None = None
) -> list[dict[str, Any]] | None:
    """Serve the requests of the replicas *mine* of *run* (None: of all) so, and count them in *summary*; *exchange*
    tells how the others stand (`servetwin.sim.fleets.epochs`). Gives what went beyond what was measured; None if it
    cannot be done: then nothing of *run* has been touched."""
    # Loaded where it is used: most runs have no routers.
    from servetwin.sim.fleets.epochs import Epochs
    from servetwin.sim.fleets.fed_engine import Whole
    from servetwin.sim.fleets.side_by_side import SideBySide

    (chosen,) = run.experiment.deployment.routings.values()
    workers, executor = run.remake()
    source = run.redraw() if run.redraw is not None else None
    assert isinstance(source, TokenColumns)

    def counts(worker: TokenWorker) -> TokenSummary:
        return TokenSummary({worker.stage.name: cast("TokenDeadlines | None", worker.view.slo)})

    try:
        router = router_registry.make(chosen.name, chosen.params)
        told = cast("list[TokenWorker]", workers), executor, router, run.experiment.seed, source, counts
        each = Epochs(*told, stale=chosen.stale, mine=mine, exchange=exchange) if chosen.stale else SideBySide(*told)
        each.play(summary.outcomes)
    except (Whole, ServeTwinError):  # what is wrong is told where it happens in the ordinary course
        return None
    each.count(summary)
    held = summary.held = executor.watch.told(summary.sizes)
    return held


class OneByOne:
    """The replicas of *run*, which `why_whole` allows, those of *mine* alone if it is given."""

    def __init__(self, run: Built, mine: Collection[int] | None = None) -> None:
        self.run = run
        self.workers, self.executor = run.remake()
        assert run.loop.dispatcher is not None
        router = run.loop.dispatcher.usual
        states = [state_of(worker, *_unseen(router, worker)) for worker in self.workers]
        router.start(states, run.experiment.seed)
        assert isinstance(run.source, TokenColumns)
        self.mine = range(len(self.workers)) if mine is None else sorted(mine)
        self.dealt = Dealt(run.source, len(self.workers), chooser(router, states), self.mine)

    def play(self, summary: Summary) -> dict[str, float]:
        """Serve the requests of one replica after the other, and count them in *summary*; gives the seconds in which
        each device computed, where devices have prices."""
        busy: dict[str, float] = {}
        with closing(self.dealt):
            for place in self.mine:
                busy |= self._play(place, summary)
        return busy

    def _play(self, place: int, summary: Summary) -> dict[str, float]:
        worker, recorder = self.workers[place], Recorder()
        assert isinstance(worker, TokenWorker)
        recorder.summary = TokenSummary({worker.stage.name: cast("TokenDeadlines | None", worker.view.slo)})
        recorder.wants_token_times = self.run.recorder.wants_token_times
        self.executor.calendar.set_time(0.0)
        loop = ServingLoop([worker.stage], [worker], self.executor, recorder)
        meter = None
        if self.run.meter is not None:
            meter = self.run.meter.like([worker])
            loop.hear_batch = meter.hearing(loop.hear_batch)
        play(loop, self.executor, self.dealt.of(place))
        loop.look_over()
        loop.check_ended()
        recorder.summary.hand_over(summary)  # which the worker's loop holds on to
        return meter.busy() if meter is not None else {}


def _unseen(router: Router, worker: Worker) -> Sequence[Callable[..., Any]]:
    """What a router that said that it is static finds if it asks how things stand at *worker*."""

    def refuse(_: Worker) -> Any:
        what = f"it is static, and asks how things stand at {worker.name}"
        raise fault(router, what, "static = False", "route")

    return refuse, refuse, refuse
