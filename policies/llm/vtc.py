"""VTC, the virtual token counter: the tenant that has had the least service is admitted next.

Source: "Fairness in Serving Large Language Models" (OSDI'24), Algorithm 2, with the weights of section 4.3.

- Each tenant has a counter of its service: *input_weight* per token of a prompt when that is admitted,
  *output_weight* per token put out, each over the weight of the request.
- When a request comes and none of its tenant waits, the counter of its tenant is lifted to the least of those that
  have requests waiting (if none has, to that of the tenant whose request left the queue last), so that nobody saves
  up service while it asks for none.
- Requests are admitted as long as memory lasts: always the oldest of the tenant whose counter is least. Then they are
  prefilled, whole, in a step of their own; else all decode. It never idles while somebody waits and fits.

Tenants are told apart by `request.tenant`; where nobody says one, all are the same, and are served first come, first
served. Two tenants that both have requests waiting all the time never differ in service by more than twice the larger
of *input_weight* times the longest prompt and *output_weight* times the tokens that memory holds (Theorem 4.4).

Deviations: whether a request fits is the engine's rule, by blocks, where the paper's reserves for a whole output; so
the engine may preempt requests. What is computed anew then is not charged again. A prompt longer than a step is
dropped.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from math import inf

from servetwin.core import Repeat
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView, WaitingOrder
from servetwin.core.parameters import above


class VTC(TokenPolicy):
    """*input_weight* and *output_weight* are what a token of a prompt, and one that is put out, count; the paper's
    are 1 and 2."""

    whole_prompts = True

    def __init__(self, input_weight: float = 1.0, output_weight: float = 2.0) -> None:
        above(0, "vtc", input_weight=input_weight, output_weight=output_weight)
        self.input_weight, self.output_weight = input_weight, output_weight
        self.lifted: dict[str, float] = {}  # by tenant: what its counter was lifted by
        self.prompts: dict[tuple[str, float], int] = {}  # tokens so far, by tenant and weight of the request
        self.outputs_so_far: dict[tuple[str, float], int] = {}
        self.charged: dict[TokenTask, int] = {}  # those admitted -> tokens put out that are counted
        self.too_long: list[TokenTask] = []  # those that wait and that no step can hold
        self.last_left = ""  # the tenant whose request was the last to leave the queue

    def start(self, view: TokenView) -> None:
        self.most = view.max_batched_tokens
        limits = view.limits
        self.queues = WaitingOrder(self._tenant, fixed=not limits.keep_freed, anywhere=limits.passes_over)

    def counter(self, tenant: str) -> float:
        """The service that *tenant* has had, in weighted tokens; counted whole, so that it does not depend on how
        often it is looked at."""
        total = self.lifted.get(tenant, 0.0)
        for tokens, weight in ((self.prompts, self.input_weight), (self.outputs_so_far, self.output_weight)):
            total += float_sum(count * weight / share for (whose, share), count in tokens.items() if whose == tenant)
        return total

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        tenant = task.request.tenant
        self.queues.follow(view.waiting)
        tenants = [whose for whose, _ in self._queues()]
        if tenant not in tenants:
            self._count(view)
            least = min(map(self.counter, tenants)) if tenants else self.counter(self.last_left)
            lift = least - self.counter(tenant)
            if lift > 0:
                self.lifted[tenant] = self.lifted.get(tenant, 0.0) + lift
        return True

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        self.queues.follow(view.waiting)
        drop = [task for task in view.waiting if task in self.too_long] if self.too_long else []
        self.too_long = drop
        prefill = []
        heads = [next(queue) for _, queue in self._queues()]
        if drop or any(view.admissible([(task, task.pending)]) for task in heads):  # else nobody fits
            self._count(view)
            prefill = view.admissible((task, task.pending) for task in self._order(view) if task not in drop)
        for task, _ in prefill:
            if task not in self.charged:
                self.charged[task] = task.generated
                key = _key(task)
                self.prompts[key] = self.prompts.get(key, 0) + task.prompt
            self.last_left = task.request.tenant
        return Step(prefill, () if prefill else ALL, drop=drop) if prefill or drop else WAIT

    def _order(self, view: TokenView) -> Iterator[TokenTask]:
        """Those that wait, in the order in which they would be admitted one after the other."""
        queues = dict(self._queues())
        heads = {tenant: next(queue) for tenant, queue in queues.items()}
        counters = {tenant: self.counter(tenant) for tenant in queues}
        for _ in range(view.max_sequences - len(view.running)):
            if not heads:
                break
            tenant = min(heads, key=lambda whose: (counters[whose], whose))
            task = heads.pop(tenant)
            if task not in self.charged:
                counters[tenant] += self.input_weight * task.prompt / task.request.weight
            following = next(queues[tenant], None)
            if following is not None:
                heads[tenant] = following
            yield task

    def _queues(self) -> list[tuple[str, Iterator[TokenTask]]]:
        """Each tenant with requests that wait, and these, in the order of the queue."""
        queues: list[tuple[str, Iterator[TokenTask]]] = []
        entries, begin = self.queues.entries, 0
        while begin < len(entries):
            tenant = entries[begin][0]
            end = bisect_left(entries, (tenant, inf))
            queues.append((tenant, (task for _, _, task in islice(entries, begin, end))))
            begin = end
        return queues

    def _tenant(self, task: TokenTask) -> str:
        if task.pending > self.most:
            self.too_long.append(task)
        return task.request.tenant

    def _count(self, view: TokenView) -> None:
        """Count the tokens that have come out since this was done last."""
        for task, counted in [*self.charged.items()]:
            generated = task.generated
            if generated > counted:
                key = _key(task)
                self.outputs_so_far[key] = self.outputs_so_far.get(key, 0) + generated - counted
                self.charged[task] = generated
            if task not in view.running and task not in view.waiting:
                del self.charged[task]


def _key(task: TokenTask) -> tuple[str, float]:
    return task.request.tenant, task.request.weight


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes (the promise to repeat it only saves time); or until the next decision.
DECODE, WAIT = Step(decode=ALL, repeat=Repeat(sys.maxsize)), Step(decode=ALL)
