"""A step scheduler for vllm-omni that asks one of our policies at every denoising step.

Give one to vllm-omni's diffusion engine, with ``step_execution=True`` in its configuration::

    DiffusionEngine(config, scheduler=PolicyStepScheduler("edf", "sdxl.yaml", slo=3.0))

The policy is the object that decides in a simulation, behind the same `ServingLoop`: vllm-omni's queues, request
states and outputs stay vllm-omni's own, and which requests take the next step is the policy's decision. A request may
say more in ``extra_args={"servetwin": {...}}`` of its sampling parameters: *slo* (seconds from its arrival),
*priority*, *tenant*, *weight* and *class*.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from servetwin.core import BadInput, Module, Outcome, Pipeline, Policy, Recorder, Request, ServeTwinError, ServingLoop
from servetwin.core.arithmetic import float_sum
from servetwin.core.request import Shape
from servetwin.core.serving.shape_turns import ShapeTurns
from servetwin.core.serving.shaped_worker import ShapedView, ShapedWorker
from servetwin.profiles import Profile, load
from vllm_omni.diffusion.sched import DiffusionRequestStatus, StepScheduler

from ..policy_files import find_policy
from .step_executor import StepExecutor

#: Under this key a request says what policies may go by, and what may be there, beside the SLO.
KEY, SAID = "servetwin", {"priority": "priority", "tenant": "tenant", "weight": "weight", "class": "class_name"}
#: How long an engine whose policy idles sleeps before it asks again, in seconds.
NAP = 0.0005


class KeyedShape(Shape):
    """The shape of a request with vllm-omni's *key* of what may go into one batch: guidance, adapters, and so on.
    Shapes are equal if their keys are too."""

    key: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyedShape) and tuple.__eq__(self, other) and self.key == other.key

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((tuple(self), self.key))


class PolicyStepScheduler(StepScheduler):  # type: ignore[misc]
    """vllm-omni's step scheduler, steered by *policy*: one of ours by name, ``package.module:Class``, or a file; with
    *params*. Or what makes a policy object.

    *profile* (its name or file, or itself) is where estimates, the largest batches, and the SLO come from: *slo*
    times what the request takes alone. Without *slo* each request must say its own. *recorder* hears what happens,
    *clock* gives seconds. What the policy drops ends as aborted. Raises `BadInput`.
    """

    max_num_running_reqs: int
    _waiting: deque[str]

    def __init__(
        self,
        policy: str | Callable[[], Policy],
        profile: str | Profile,
        *,
        slo: float | None = None,
        params: Mapping[str, Any] | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        if isinstance(policy, str):
            found = find_policy(policy, Policy, "servetwin.policies.diffusion", "diffusion models")
            self._make: Callable[[], Policy] = lambda: found(**dict(params or {}))
        else:
            self._make = policy
        if slo is not None and not (slo > 0 and math.isfinite(slo)):
            raise BadInput(f"slo is {slo}", right="a positive number: times what a request takes alone")
        self._profile = load(profile) if isinstance(profile, str) else profile
        if self._profile.data.image is None:
            raise BadInput("it does not say of which size its images are", where=self._profile.name, right="image")
        self._slo, self._recorder, self._clock = slo, recorder, clock
        modules = [Module(name, loop=table.loop) for name, table in self._profile.data.modules.items()]
        self._stage = Pipeline.chain(*modules).stages([[module.name for module in modules]])[0]
        if self._stage.loop is None:
            raise BadInput("it has no module that loops", where=self._profile.name, right="that of a diffusion model")

    # -- what the engine calls -------------------------------------------------------------------------------

    def initialize(self, od_config: Any, **of_kv: Any) -> None:
        if of_kv:
            raise BadInput("KV caches of diffusion models are not ours to share out", right="dense_legacy")
        super().initialize(od_config)
        self._steps = StepExecutor(self._clock)
        self._new: deque[Request] = deque()
        self._ids = 0
        self._requests: dict[str, Request] = {}  # what our loop has of vllm-omni's, by vllm-omni's id
        self._names: dict[int, str] = {}  # and the other way round
        self._dummies: set[str] = set()  # warm-up runs of vllm-omni, which no policy is asked about
        self._fault: str | None = None
        own = self._shape(None)
        self._view = ShapedView(
            self._stage,
            {own: self._profile.estimate()},
            {own: self._most(own)},
            name="vllm-omni",
            slo_factor=self._slo,
        )
        policy = self._make()
        self._turns = None if policy.heeds_shapes else ShapeTurns(self._make, [])
        worker = ShapedWorker(self._stage, self._turns or policy, self._view)
        self._loop = ServingLoop([self._stage], [worker], self._steps, self._recorder)
        self._loop.hear_ends(self._ended)

    def add_request(self, request: Any) -> str:
        """As vllm-omni's. Raises `BadInput` for a shape that the profile does not know, and for what cannot be read
        of what the request says to policies."""
        if self._fault is not None:
            raise ServeTwinError(self._fault)
        if request.is_dummy_run():
            self._dummies.add(request.request_id)
            return str(super().add_request(request))
        ours = self._told(request)
        name = str(super().add_request(request))
        progress = self._request_progress[name]
        ours.work = {self._loop_module: progress.total_steps - progress.current_step}
        self._names[ours.id], self._requests[name] = name, ours
        self._new.append(ours)  # a client's thread: the loop hears of it when the engine is free
        return name

    def schedule(self) -> Any:
        if self._dummies:
            return super().schedule()
        try:
            chosen = self._chosen()
        except Exception as error:
            chosen = []
            self._give_up(error)
        for name in [name for name in self._running if name not in chosen]:
            self.preempt_request(name)
        joining = [name for name in chosen if name not in self._running]
        self._waiting = deque([*joining, *(name for name in self._waiting if name not in chosen)])
        most, self.max_num_running_reqs = self.max_num_running_reqs, len(chosen)
        try:
            output = super().schedule()
        finally:
            self.max_num_running_reqs = most
        if sorted(output.scheduled_request_ids) != sorted(chosen):
            raise ServeTwinError(f"vllm-omni ran {output.scheduled_request_ids} instead of {chosen}")
        if output.is_empty and not output.finished_req_ids:
            time.sleep(NAP)
        return output

    def update_from_output(self, sched_output: Any, output: Any) -> set[str]:
        finished: set[str] = super().update_from_output(sched_output, output)
        self._dummies -= finished
        batch = self._steps.batch
        if batch is None or not sched_output.scheduled_request_ids:
            return finished
        try:
            for name in finished:
                self._left(name)
            self._steps.step()
        except Exception as error:
            self._give_up(error)
        return finished | self._overdue(sched_output.scheduled_request_ids)

    def finish_requests(self, request_ids: str | list[str], status: DiffusionRequestStatus) -> None:
        super().finish_requests(request_ids, status)
        for name in [request_ids] if isinstance(request_ids, str) else request_ids:
            self._left(name)

    # -- between the two -------------------------------------------------------------------------------------

    @property
    def _loop_module(self) -> str:
        assert self._stage.loop is not None
        return self._stage.loop

    def _shape(self, request: Any) -> KeyedShape:
        """Of which shape *request* is; None: the profile's own. What it leaves out is the profile's."""
        data = self._profile.data
        assert data.image is not None
        said = request.sampling_params if request is not None else None
        height, width = (getattr(said, side, None) for side in ("height", "width"))
        frames = data.frames or 1 if said is None else said.num_frames
        images = 1 if said is None else said.num_outputs_per_prompt
        shape = KeyedShape(height or data.image[0], width or data.image[1], frames, None, images)
        shape.key = self._build_sampling_params_key(request) if request is not None else None
        return shape

    def _most(self, shape: Shape) -> int:
        """The largest batch of that *shape*: what vllm-omni may run, and the profile knows."""
        profile = self._profile.at(Shape(*shape))
        return int(min(self.max_num_running_reqs, *(profile.table(m).sizes[-1] for m in self._stage.modules)))

    def _told(self, request: Any) -> Request:
        """What our loop is told of *request*, but for its steps; its shape is made known."""
        said = (request.sampling_params.extra_args or {}).pop(KEY, {})
        if not isinstance(said, Mapping):
            raise BadInput(f"{said!r} is no mapping", where=f"extra_args.{KEY}")
        for key in said:
            if key not in SAID and key != "slo":
                raise BadInput(f"unknown key {key!r}", where=f"extra_args.{KEY}", right=", ".join(["slo", *SAID]))
        shape = self._shape(request)
        estimate = self._profile.at(Shape(*shape)).estimate()
        slo = said.get("slo")
        if slo is None and self._slo is not None:
            steps = self._get_total_steps(request) - (request.sampling_params.step_index or 0)
            slo = self._slo * float_sum(
                (steps if module == self._loop_module else 1) * estimate(module, 1) for module in self._stage.modules
            )
        if not isinstance(slo, int | float) or not slo > 0:
            right = "seconds, or slo= of the scheduler"
            raise BadInput(f"its SLO is {slo}", where=f"extra_args.{KEY}.slo", right=right)
        more = {SAID[key]: value for key, value in said.items() if key in SAID}
        self._ids += 1
        return Request(self._ids, self._steps.now(), float(slo), {}, shape=shape, **more)

    def _chosen(self) -> list[str]:
        """Who takes the next step, by vllm-omni's ids."""
        while self._new:
            request = self._new.popleft()
            if request.id not in self._names:
                continue  # aborted before it was heard of
            shape = request.shape
            assert shape is not None
            if shape not in self._view.limits:
                self._view.add(shape, self._profile.at(Shape(*shape)).estimate(), self._most(shape))
                if self._turns is not None:
                    self._turns.add(shape)
            self._loop.arrive(request)
        while True:
            self._steps.settle()
            batch = self._steps.batch
            if batch is None:
                return []
            names = [self._names.get(task.id) for task in batch.tasks]
            if chosen := [name for name in names if name is not None and self._lives(name)]:
                return chosen
            self._steps.end()  # all of it were aborted

    def _lives(self, name: str) -> bool:
        state = self._request_states.get(name)
        return state is not None and not state.is_finished()

    def _left(self, name: str) -> None:
        """vllm-omni is done with *name*: so is our loop, unless it ends it with its batch."""
        request, state = self._requests.get(name), self._request_states.get(name)
        if request is None or state is None or request.outcome is not None:
            return
        if state.status == DiffusionRequestStatus.FINISHED_COMPLETED:
            return
        reason = state.error or "aborted"
        if request.id in self._loop.live:
            self._loop.fail(request, reason)
        else:  # it was not heard of yet
            self._forget(request)

    def _overdue(self, names: list[str]) -> set[str]:
        """Those of *names* that have taken all their steps, by our count, and that vllm-omni has not ended."""
        late = {name for name in names if name not in self._requests and self._lives(name)}
        if late:
            error = "it has taken all steps that it asked for, and vllm-omni has not ended it"
            self._finish_requests(
                dict.fromkeys(late, DiffusionRequestStatus.FINISHED_ERROR), dict.fromkeys(late, error)
            )
        return late

    def _ended(self, request: Request, now: float) -> None:
        """Our loop has ended *request*."""
        name = self._forget(request)
        if request.outcome is Outcome.DROPPED and name is not None:
            self._finish_requests({name: DiffusionRequestStatus.FINISHED_ABORTED})

    def _forget(self, request: Request) -> str | None:
        name = self._names.pop(request.id, None)
        if name is not None:
            self._requests.pop(name, None)
        return name

    def _give_up(self, error: Exception) -> None:
        """The policy broke the run: whatever is here ends with the reason, and nothing more is taken in."""
        said = str(error) if isinstance(error, ServeTwinError) else f"{type(error).__name__}: {error}"
        self._fault = f"the policy broke the run: {said}"
        self._steps.batch = None
        self._new.clear()
        names = [name for name in self._request_states if self._lives(name)]
        self._finish_requests(
            dict.fromkeys(names, DiffusionRequestStatus.FINISHED_ERROR), dict.fromkeys(names, self._fault)
        )
