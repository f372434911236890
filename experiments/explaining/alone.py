"""What a request would take if it were served alone, at the speed of batches of one.

By the measured times of the profiles (those that a scheduler plans with, where a module has no others), without
joining, leaving, transfers and the host's time between batches: no more than any schedule spends, but for noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from servetwin.core import Stage
from servetwin.core.arithmetic import float_sum

from ..assembly import engine_options
from ..assembly.llm_workers import settings_of
from ..assembly.pipeline import make_pipeline, mean_of_calls
from ..assembly.replicas import expanded
from ..assembly.shapes import refuse
from ..spec.experiment import Experiment, WorkerSpec
from ..spec.loading import load_profiles
from .engine_memory import Memory

if TYPE_CHECKING:
    from servetwin.profiles import TokenTable

    from .visits import Inputs, Visit

#: Options of engines of whose runs nothing can be explained: records of steps do not say how many tokens each
#: sequence got, nor what of a step's time was spent on drafts, or on bringing adapters or KV to the device.
NOT_TOLD = ("speculative_config", "lora", "kv_offloading", "pipeline_parallel")


@dataclass(frozen=True)
class StageAlone:
    """Seconds at a stage: once *before* its loop, per iteration of *step*, once *after* it."""

    iterations: int
    before: float
    step: float
    after: float

    def left(self, done: int) -> float:
        """What is left when so many iterations are done."""
        rest = self.iterations - done
        if rest <= 0:
            return 0.0
        return (self.before if not done else 0.0) + rest * self.step + self.after

    def ran(self, done: int, count: int) -> float:
        """What *count* iterations take after the first *done*."""
        return self.left(done) - self.left(done + count)


@dataclass(frozen=True)
class TokensAlone:
    """Seconds of a request to a language model, by the table of its step times."""

    table: TokenTable
    prompt: int
    decodes: TokenTable | None = None  #: by which it decodes, where another computes its prompt

    def prefill(self, tokens: int) -> float:
        """Of a prompt, or a chunk, of so many tokens; in pieces of the longest that was measured."""
        longest = self.table.largest_prefill
        whole, rest = divmod(tokens, longest)
        return whole * self.table.prefill(longest) + (self.table.prefill(rest) if rest else 0.0)

    def decode(self, context: int) -> float:
        """Of a token after so many."""
        return (self.decodes or self.table).decode(1, float(context))

    def decoded(self, tokens: int) -> np.ndarray:
        """Of the decode steps from the first token on until token j, at [j]; [0] and [1] are 0."""
        steps = [self.decode(self.prompt + j) for j in range(max(tokens - 1, 0))]
        return np.concatenate([[0.0, 0.0], np.cumsum(steps)]) if steps else np.zeros(2)


class Alone:
    """The speeds of an experiment's modules, each on the device of the worker that serves it.

    Raises `BadInput` if a profile is not here, or the experiment does not fit it.
    """

    def __init__(self, experiment: Experiment) -> None:
        refuse(experiment, "an explanation")
        engine_options.refuse(experiment, "an explanation", "a run without it", *NOT_TOLD)
        self.experiment = experiment = expanded(experiment)
        self.profiles = load_profiles(experiment)
        self.workers: dict[str, WorkerSpec] = {
            w.name or "+".join(w.modules): w for w in experiment.deployment.workers
        }
        groups = list(dict.fromkeys(tuple(w.modules) for w in experiment.deployment.workers))
        self.stages: dict[str, Stage] = {
            stage.name: stage for stage in make_pipeline(experiment.pipeline, experiment.name).stages(groups)
        }
        self._first = {tuple(w.modules): w for w in reversed(experiment.deployment.workers)}

    @property
    def inputs(self) -> Inputs:
        """The stages that lead to each stage."""
        feeds: dict[str, set[str]] = {name: set() for name in self.stages}
        for name, stage in self.stages.items():
            for after in (*stage.next, *(branch.target for branch in stage.branches)):
                feeds[after.name].add(name)
        return {name: frozenset(found) for name, found in feeds.items()}

    def intake(self, worker: str) -> str:
        """When that worker takes requests in: before it decides, or after."""
        return self.workers[worker].intake

    def is_llm(self, stage: Stage) -> bool:
        """Whether that stage is a language model."""
        return stage.modules[0] in self.experiment.pipeline.llms

    def at(self, stage: str, worker: str, work: Mapping[str, int]) -> StageAlone:
        """Of a request with that *work* at a stage that is no language model."""
        return self._at(self.stages[stage], self.workers[worker], work)

    def tokens(self, visit: Visit) -> TokensAlone:
        """Of a visit to a language model."""
        table = self._table(visit.worker)
        if visit.is_handed:
            return TokensAlone(self._table(visit.stay["handover"]["from"]), visit.stay["prompt"], table)
        return TokensAlone(table, visit.stay["prompt"])

    def _table(self, worker: str) -> TokenTable:
        spec = self.workers[worker]
        profile = self.profiles[spec.device or ""]
        return engine_options.table_of(spec, profile, profile.tokens("measured", "scheduler", hold=True))

    def memory(self, worker: str) -> Memory:
        """The KV memory of that engine."""
        spec = self.workers[worker]
        limits = settings_of(spec, self.profiles[spec.device or ""]).limits
        keeps = limits.keep_freed or limits.enable_prefix_caching or limits.preemption == "swap"
        return Memory(limits.block_size, limits.reserve, limits.max_batched_tokens, limits.whole_prompt, keeps)

    def after(self, stage: str, work: Mapping[str, int]) -> tuple[float, list[str]]:
        """Seconds from the end of *stage* to the end of the longest path that a request most likely takes; and the
        language models on the way, whose tokens are not known and do not count."""
        longest: tuple[float, list[str]] = 0.0, []
        for following in self.stages[stage].likely:
            seconds, unknown = self.after(following.name, work)
            if self.is_llm(following):
                unknown = [following.name, *unknown]
            else:
                seconds += self._at(following, self._first[following.modules], work).left(0)
            longest = max(longest, (seconds, unknown))
        return longest

    def _at(self, stage: Stage, spec: WorkerSpec, work: Mapping[str, int]) -> StageAlone:
        seconds = self._seconds(spec)
        if stage.loop is None:
            return StageAlone(1, 0.0, float_sum(seconds(m) for m in stage.modules), 0.0)
        before, after = (float_sum(seconds(m) for m in some) for some in (stage.before, stage.after))
        return StageAlone(work.get(stage.loop, 1), before, seconds(stage.loop), after)

    def _seconds(self, spec: WorkerSpec) -> Callable[[str], float]:
        if spec.device is None:
            mean = mean_of_calls(spec)
            return lambda _: mean
        profile = self.profiles[spec.device]
        return lambda module: profile.table(module, "measured", "scheduler", hold=True)(1)
