"""Short prompts first, for language models."""

from __future__ import annotations

from typing import Annotated

from servetwin.core.llm import ALL, Step, TokenPolicy, TokenView


class ShortPromptsFirst(TokenPolicy):
    """Prefills the shortest prompts that wait, whole, before anybody decodes."""

    starves = True  # a long prompt waits for as long as short ones come

    def __init__(self, at_once: Annotated[int, "prompts in a step, at most"] = 4) -> None:
        self.at_once = at_once

    def decide(self, view: TokenView, now: float) -> Step:
        # Those that lost their memory come first, since they have waited before.
        waiting = sorted(view.waiting, key=lambda task: (-task.preemptions, task.prompt, task.id))
        prefill = view.admissible([(task, task.pending) for task in waiting[: self.at_once]])
        return Step(prefill) if prefill else Step(decode=ALL)
