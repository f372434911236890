"""Token ids of prompts for engines that cache prefixes: what is said to be the same is the same, and nothing else is.

A prompt is the contents that `servetwin.core.llm.PromptContent` names, one after the other, and then tokens of its
own. Wherever one begins to differ from others it has a number that nobody else has, which its next tokens spell.

>>> from servetwin.core.llm import PromptContent
>>> prompts = Prompts()
>>> a = prompts.ids(Planned(0, 0.0, 40, 1, prefix=PromptContent(("system",), 32)))
>>> b = prompts.ids(Planned(1, 0.0, 40, 1, prefix=PromptContent(("system",), 32)))
>>> c = prompts.ids(Planned(2, 0.0, 40, 1))
>>> a[:32] == b[:32], a[32:] == b[32:], a[:3] == c[:3]
(True, False, False)
"""

from __future__ import annotations

import random
from collections.abc import Hashable

from .plan import Planned

#: The first token id in use: those before it are special in the tokenizers of the models that are served.
FIRST = 4
#: Ids in use if the vocabulary is not known: that of the tiny models has 512.
IDS = 500
#: Tokens in which a number is spelled: 125 million branches with the fewest ids.
SPELLED = 3


class Prompts:
    """Makes the prompts of a run, one after the other. *vocabulary* is that of the model (None: not known).

    Where a block holds but the first token of what is new in it, as many branches as there are ids in use differ.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        self.count = max(IDS, (vocabulary or 0) - 2 * FIRST)
        self._numbers = 0
        self._named: dict[tuple[Hashable, int], list[int]] = {}
        rng = random.Random(0)
        self._rest = [FIRST + rng.randrange(self.count) for _ in range(4096)]

    def ids(self, planned: Planned) -> list[int]:
        """The token ids of the prompt of *planned*."""
        found: list[int] = []
        content = planned.prefix
        if content is not None:
            for name in content.chain:
                if len(found) >= planned.prompt:
                    break
                part = self._named.get((name, content.size))
                if part is None:
                    part = self._named[name, content.size] = self._branch(content.size)
                found += part
            del found[planned.prompt :]
        return found + self._branch(planned.prompt - len(found)) if len(found) < planned.prompt else found

    def _branch(self, size: int) -> list[int]:
        """*size* tokens that begin as no others do."""
        number, self._numbers = self._numbers, self._numbers + 1
        spelled = [FIRST + number // self.count**place % self.count for place in range(SPELLED)]
        while len(self._rest) < size:
            self._rest += self._rest
        return (spelled + self._rest[: size - SPELLED] if size > SPELLED else spelled)[:size]
