"""What an LLM run amounted to: latencies and throughput as ``vllm bench serve`` reports them, goodput in tokens as
NeuStream does. The formulas stand in docs/reference/token-metrics.md.

>>> limits = TokenLimits(ttft=2.0, tpot=0.1)
>>> limits.hold(ttft=1.9, tpot=0.1, itl=0.3, e2el=30.0)
True
>>> TokenLimits(itl=0.2).hold(ttft=1.9, tpot=0.1, itl=0.3, e2el=30.0)
False
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

import numpy as np

from ..arithmetic.samples import Distribution, Samples
from ..group_metrics import Group, Tokens
from ..metrics import Summary
from ..request import Request
from ..slo import latest, slack
from .metric_blocks import TokenBlock
from .request import Adapted, CachingTask, Handed, TokenTask
from .slo import _STEPS, _SUMS, LimitsSLO, TokenDeadlines, TokenLimits, _longer, sent_at, task_limits
from .speculation import SpeculativeTask
from .token_gaps import Gaps


def limits_of_block(block: TokenBlock, limits: TokenLimits) -> np.ndarray:
    """As `task_limits`, of each in *block*."""
    more = slack(block.last)
    kept: np.ndarray = (block.first - block.sent <= limits.ttft + more) & (block.tpot <= limits.tpot + more)
    kept &= block.last - block.sent <= limits.e2el + more
    if limits.itl < inf:
        kept &= block.longest_gaps() <= limits.itl + more
    return kept


def on_time_of_block(block: TokenBlock, slo: TokenDeadlines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many of the tokens of each in *block* came by their deadlines (as `TokenDeadlines.in_time` of each), and
    whether its first and its last did."""
    firsts, per_step = slo.first_due(block), slo.decode_scale * (slo.d0 + slo.d1 * block.prompts)
    found = np.empty(len(block), dtype=int), np.empty(len(block), dtype=bool), np.empty(len(block), dtype=bool)
    for places, times in block.portions():
        count, counts = times.shape[1], block.counts[places]
        steps, sums = (_STEPS, _SUMS) if count <= len(_STEPS) else _longer(count)
        due = per_step[places, None] * steps[:count]
        due += firsts[places, None]
        due += (slo.decode_scale * slo.d1) * sums[:count]
        due += slack(firsts[places])[:, None]
        kept = times <= due
        if counts[0] < count:
            kept &= steps[:count] < counts[:, None]
        for column, values in zip(
            found, (np.count_nonzero(kept, axis=1), kept[:, 0], kept[np.arange(len(places)), counts - 1]), strict=True
        ):
            column[places] = values
    return found


def _last_kept(block: TokenBlock, slo: TokenDeadlines) -> np.ndarray:
    """Whether the last token of each in *block* came in time, as `CumulativeSLO.met` reckons."""
    steps = (block.counts - 1).astype(float)
    alone = slo.d0 * steps + slo.d1 * (steps * block.prompts + steps * (steps + 1.0) / 2.0)
    kept: np.ndarray = block.last <= latest(slo.first_due(block) + slo.decode_scale * alone)
    return kept


#: What is counted of a stage, and adds up over several of them.
_SUMMED = (
    *("completed", "within_limits", "prompt_tokens", "output_tokens", "all_tokens", "preemptions"),
    *("cache_queries", "cache_hits", "cache_hits_again", "host_hits", "handed", "handing_wait", "handing"),
    *("adapter_loads", "verified", "drafted", "accepted"),
    *("first_on_time", "last_on_time", "late_firsts", "on_time"),
)


class StageTokens:
    """Tokens of one LLM stage, gathered as requests end; 24 bytes are kept per request that finished it."""

    def __init__(self, slo: TokenDeadlines | None) -> None:
        self.promise = slo
        self.slo = slo if slo is not None and slo.counts_tokens else None
        self.limits = slo.limits if slo is not None else None
        self.completed = self.within_limits = 0
        self.prompt_tokens = self.output_tokens = self.all_tokens = self.preemptions = 0
        self.caching = False  # whether its engines have a prefix cache; tokens asked of it, and found in it
        self.cache_queries = self.cache_hits = self.cache_hits_again = 0
        self.handed = 0  # whose KV went from one engine to another; how long it waited for that, and was on its way
        self.handing_wait = self.handing = 0.0
        self.handed_prompts = self.handed_found = 0  # tokens, of those sent to an engine with a prefix cache
        self.adapters, self.adapter_loads = False, 0
        self.host_hits = 0  # of the tokens found in a prefix cache those that were in host memory alone
        self.verified = self.drafted = self.accepted = 0  # steps that drafted, and tokens
        self.ttft, self.tpot, self.e2el = Samples(), Samples(), Samples()
        self.itl = Gaps()
        self.first_on_time = self.last_on_time = self.late_firsts = 0
        self.on_time = 0
        self.first_arrival = inf
        self.last_finish = -inf

    def ended(self, task: TokenTask) -> None:
        """The request of *task* has ended; *task* may have generated no token, some, or all."""
        self.preemptions += task.preemptions
        if type(task) is CachingTask or (isinstance(task, CachingTask) and task.cached_tokens is not None):
            self.caching = True
            if task.cached_tokens is not None:
                self.cache_queries += task.prompt
                self.cache_hits += task.cached_tokens
                self.cache_hits_again += task.cached_again
                self.host_hits += task.cached_on_host
        if isinstance(task, Handed) and task.handed is not None:
            assert task.prefilled is not None
            assert task.sent is not None
            self.handed += 1
            self.handing_wait += task.sent - task.prefilled
            self.handing += task.handed - task.sent
            if task.found is not None:
                self.handed_prompts += task.prompt
                self.handed_found += task.found
        if isinstance(task, Adapted):
            self.adapters = True
            self.adapter_loads += task.adapter_loads
        if isinstance(task, SpeculativeTask):
            self.verified += task.verified
            self.drafted += task.drafted
            self.accepted += task.accepted
        if task.arrival < self.first_arrival:
            self.first_arrival = task.arrival
        first, generated = task.first_token, task.generated
        if first is None:
            return
        self.all_tokens += generated
        if generated > 1:
            # Tokens that come out together are one output, with one gap to that before (as in vLLM's benchmark).
            self.itl.add(array("d", np.unique(task.times())) if self.drafted else task.token_times)
        if self.slo is not None:
            known = task.known_in_time  # the engine has asked the SLO when the last token came
            kept = known[1] if known is not None and known[0] is self.slo else self.slo.in_time(task)
            self.on_time += int(np.count_nonzero(kept))
            if kept[0]:
                self.first_on_time += 1
            else:
                self.late_firsts += 1
            if kept[-1] and task.finished is not None:
                self.last_on_time += 1
        if task.finished is None:
            return
        self.completed += 1
        self.prompt_tokens += task.prompt
        self.output_tokens += generated
        if task.finished > self.last_finish:
            self.last_finish = task.finished
        request = task.request
        sent = request.arrival if task is request.tasks[0] else task.queued  # `sent_at`, written out: each one's
        self.ttft.recent.append(first - sent)
        self.e2el.recent.append(task.finished - sent)
        if generated > 1:
            self.tpot.recent.append((task.finished - first) / (generated - 1))
        if self.limits is not None and self.promise is not None:
            limits = self.promise.for_task(task).limits
            if limits is not None and task_limits(task, limits):
                self.within_limits += 1

    def ended_block(self, block: TokenBlock) -> tuple[np.ndarray, np.ndarray | None]:
        """Those of *block* have generated all their tokens; gives which of them kept the SLO of their tokens, and how
        many tokens of each came in time, if single tokens have deadlines.

        To the bit what `ended` gives of one after the other.
        """
        many = len(block)
        self.first_arrival = min(self.first_arrival, float(block.arrival.min()))
        self.last_finish = max(self.last_finish, float(block.last[-1]))
        tokens = int(block.counts.sum())
        self.all_tokens += tokens
        self.output_tokens += tokens
        self.prompt_tokens += int(block.prompts.sum())
        self.completed += many
        self.itl.add_counted(*block.gaps())
        kept, on_time = self._kept(block)
        if on_time is not None:
            counts, firsts, lasts = on_time
            self.on_time += int(counts.sum())
            first = int(np.count_nonzero(firsts))
            self.first_on_time += first
            self.late_firsts += many - first
            self.last_on_time += int(np.count_nonzero(lasts))
        self.ttft.extend(block.first - block.sent)
        self.e2el.extend(block.last - block.sent)
        self.tpot.extend(block.tpot[block.counts > 1])
        return kept, None if on_time is None else on_time[0]

    def merge(self, other: StageTokens) -> None:
        """Count what *other*, of the same promise, counted as well (`Summary.merge`)."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.caching, self.adapters = self.caching or other.caching, self.adapters or other.adapters
        for name in ("ttft", "tpot", "e2el"):
            getattr(self, name).merge(getattr(other, name))
        self.itl.merge(other.itl)
        self.first_arrival = min(self.first_arrival, other.first_arrival)
        self.last_finish = max(self.last_finish, other.last_finish)

    def _kept(self, block: TokenBlock) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Which of *block* kept the SLO of their tokens, and what `on_time_of_block` gives of all; and counts who
        kept the limits that are reported beside."""
        many, promise = len(block), self.promise
        kept = np.ones(many, dtype=bool)
        on_time = np.empty(many, dtype=int), np.empty(many, dtype=bool), np.empty(many, dtype=bool)
        if promise is None:
            return kept, None
        for name, places, part in block.by_class():
            own = promise.for_class(name)
            limited = isinstance(own, LimitsSLO)
            if self.slo is not None or not limited:
                for column, found in zip(on_time, on_time_of_block(part, own), strict=True):
                    column[places] = found
            if limited and own.limits is not None:
                kept[places] = limits_of_block(part, own.limits)
            else:
                kept[places] = on_time[0][places] == part.counts if own.meets == "all" else _last_kept(part, own)
            if self.limits is not None and own.limits is not None:
                self.within_limits += int(np.count_nonzero(limits_of_block(part, own.limits)))
        return kept, None if self.slo is None else on_time

    def as_dict(self, duration: float) -> dict[str, Any]:
        """Tokens and requests per second over *duration* (seconds), latencies in milliseconds.

        None where nothing was measured, or asked for.
        """
        out: dict[str, Any] = {
            "completed": self.completed,
            "total_input_tokens": self.prompt_tokens,
            "total_output_tokens": self.output_tokens,
            "output_throughput": _rate(self.output_tokens, duration),
            "total_token_throughput": _rate(self.prompt_tokens + self.output_tokens, duration),
        }
        for name, values in (("ttft", self.ttft), ("tpot", self.tpot), ("e2el", self.e2el)):
            _latencies(out, name, _five(values))
        _latencies(out, "itl", self.itl.statistics())
        out["preemptions"] = self.preemptions
        if self.caching:
            queries = self.cache_queries
            out["prefix_cache_queries"], out["prefix_cache_hits"] = queries, self.cache_hits
            out["prefix_cache_hit_rate"] = self.cache_hits / queries if queries else None
            out["prefix_cache_hits_of_preempted"] = self.cache_hits_again
            if self.host_hits:
                out["prefix_cache_hits_on_host"] = self.host_hits
                out["prefix_cache_hit_rate_on_host"] = self.host_hits / queries
        if self.handed:
            out["handovers"] = self.handed
            out["mean_handover_wait_ms"] = self.handing_wait / self.handed * 1000.0
            out["mean_handover_ms"] = self.handing / self.handed * 1000.0
            if self.handed_prompts:
                out["handover_hits"] = self.handed_found
                out["handover_hit_rate"] = self.handed_found / self.handed_prompts
        if self.adapters:
            out["adapter_loads"] = self.adapter_loads
        if self.verified:
            out["spec_decode_num_drafts"] = self.verified
            out["spec_decode_num_draft_tokens"], out["spec_decode_num_accepted_tokens"] = self.drafted, self.accepted
            out["mean_acceptance_length"] = 1.0 + self.accepted / self.verified
        if self.limits is not None:
            out["within_limits"] = self.within_limits
            out["limits_goodput"] = _rate(self.within_limits, duration)
        if self.slo is not None:
            artifact = self.last_finish - self.first_arrival
            out["on_time_tokens"] = self.on_time
            out["late_tokens"] = self.all_tokens - self.on_time
            out["token_goodput"] = _rate(self.on_time, duration)
            out["token_goodput_artifact"] = _rate(self.on_time + self.late_firsts, artifact)
            out["prefill_goodput"] = _rate(self.first_on_time, duration)
            out["decode_goodput"] = _rate(self.last_on_time, duration)
        return out


def _rate(count: float, duration: float) -> float | None:
    return count / duration if 0.0 < duration < inf else None


def _five(values: Samples) -> tuple[float, ...] | None:
    if not values:
        return None
    found = Distribution(values, (0.5, 0.9, 0.99))
    return found.mean, found.std(), *found.quantiles


def _latencies(out: dict[str, Any], name: str, five: tuple[float, ...] | None) -> None:
    for i, statistic in enumerate(("mean", "std", "median", "p90", "p99")):
        out[f"{statistic}_{name}_ms"] = five[i] * 1000.0 if five is not None else None


class TokenSummary(Summary):
    """A `Summary` that knows LLM stages. *slos* holds what each promises, and the limits that are reported beside.

    Its recorder must want the times of tokens (`Recorder.wants_token_times`).
    """

    def __init__(self, slos: dict[str, TokenDeadlines | None]) -> None:
        self._slos = slos
        super().__init__()

    def _begin(self) -> None:
        super()._begin()
        self.stages = {stage: StageTokens(slo) for stage, slo in self._slos.items()}

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        stages = self.stages
        for task in request.tasks:
            if isinstance(task, TokenTask):
                stages[task.stage.name].ended(task)
        if request.class_name or request.tenant:
            self._count_tokens(request)

    def _count_tokens(self, request: Request) -> None:
        """Count the tokens of *request* for its class and its tenant."""
        for group in self.groups.of(request):
            tokens = group.tokens = group.tokens or Tokens()
            for task in request.tasks:
                if not isinstance(task, TokenTask):
                    continue
                slo = self.stages[task.stage.name].slo
                tokens.deadlines = tokens.deadlines or slo is not None
                if task.first_token is None:
                    continue
                tokens.output += task.generated
                if slo is not None:
                    tokens.on_time += int(np.count_nonzero(slo.in_time(task)))
                if task.finished is not None:
                    tokens.ttft.recent.append(task.first_token - sent_at(task))
                    if task.generated > 1:
                        tokens.tpot.recent.append((task.finished - task.first_token) / (task.generated - 1))

    def count_block(
        self, block: TokenBlock, met: np.ndarray, on_time: np.ndarray | None, terms: Mapping[str, Any]
    ) -> None:
        """Count those of *block*, whose only stage this is, for their classes and tenants: which *met* their SLO,
        and how many tokens of each were *on_time*. *terms* has *tenant* and *weight* of each class."""
        tenants = [terms[name].tenant for name in block.classes]
        weights = np.array([terms[name].weight for name in block.classes])
        for names, groups in ((block.classes, self.groups.classes), (tenants, self.groups.tenants)):
            each = np.array(names)
            for name in filter(None, dict.fromkeys(names)):
                at = np.flatnonzero(each == name)
                group = groups.setdefault(name, Group())
                first, last, sent, counts = block.first[at], block.last[at], block.sent[at], block.counts[at]
                group.ended_together(met[at], last - sent, block.prompts[at] + counts, weights[at])
                tokens = group.tokens = group.tokens or Tokens()
                tokens.deadlines = tokens.deadlines or on_time is not None
                tokens.output += int(counts.sum())
                tokens.on_time += int(on_time[at].sum()) if on_time is not None else 0
                tokens.ttft.extend(first - sent)
                tokens.tpot.extend(block.tpot[at][counts > 1])

    def merge(self, other: Summary) -> None:
        """As of `Summary`; *other* is of the same stages, with the same promises."""
        assert isinstance(other, TokenSummary)
        for name, stage in self.stages.items():
            stage.merge(other.stages[name])
        super().merge(other)

    def _samples(self) -> Iterator[Samples]:
        yield from super()._samples()
        for stage in self.stages.values():
            yield from (stage.ttft, stage.tpot, stage.e2el)

    def as_dict(self) -> dict[str, Any]:
        """As of `Summary`, with ``llm``: the tokens of each LLM stage; those of a single one stand at the top too."""
        out = super().as_dict()
        stages = {name: stage.as_dict(out["duration"]) for name, stage in self.stages.items()}
        if len(stages) == 1:
            (only,) = stages.values()
            out = {**out, **{key: value for key, value in only.items() if key not in out}}
        out["llm"] = stages
        return out
