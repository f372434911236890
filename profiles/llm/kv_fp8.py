"""Steps of an engine whose keys and values (KV) are kept in 8 bits, by a table that was taken with 16.

Memory bandwidth is what a decode step's attention waits for, so half the bytes may be read in less time; how much
less depends on the kernels, and is measured or stated: nothing here derives it. What is scaled is the part of a step
that grows with the tokens whose KV stood before it. The rest (weights, a prompt's attention to itself, the host) is
as in the table.

>>> from servetwin.profiles import load
>>> plain = load("a6000/opt-13b-tp1").tokens("measured")
>>> fp8 = Fp8Table(plain, decode=0.5, prefill=1.0)
>>> fp8.decode(8, 0) == plain.decode(8, 0)
True
>>> round((fp8.decode(8, 2000) - fp8.decode(8, 0)) / (plain.decode(8, 2000) - plain.decode(8, 0)), 9)
0.5
"""

from __future__ import annotations

from .decode_surface import Pieces
from .step_table import TokenTable


class Fp8Table(TokenTable):
    """*table* with KV in 8 bits. Of a step's time the part that grows with the context takes *decode* times as long
    for sequences that decode, and *prefill* times as long for chunks of prompts."""

    def __init__(self, table: TokenTable, *, decode: float, prefill: float) -> None:
        super().__init__(table.model, name=table.name, hold=table.hold, between_cost=table.between_cost)
        self._plain, self._ratios = table, (decode, prefill)
        self.per_pair *= prefill
        over, beside, decoding = self._over_context, self._beside, self._decoding
        if over is not None:
            self._over_context = lambda tokens, context: prefill * over(tokens, context)
        if beside is not None:

            def lighter(tokens: float, context: float, batch: float, each: float) -> float:
                without = beside(tokens, context, batch, 0.0)
                return without + decode * (beside(tokens, context, batch, each) - without)

            self._beside = lighter
        if decoding is not None:
            terms = tuple(decode * seconds for seconds in decoding.per_context)
            changed = {"per_context": terms, "per_both": decode * decoding.per_both}
            self._decoding = decoding.model_copy(update=changed)

    def pieces(self, batch: int) -> Pieces:
        found = self._pieces.get(batch)
        if found is None:
            plain, (ratio, _) = self._plain.pieces(batch), self._ratios
            without = plain.constants[0]
            constants = tuple(without + ratio * (constant - without) for constant in plain.constants)
            slopes = tuple(ratio * slope for slope in plain.slopes)
            found = self._pieces[batch] = Pieces(plain.starts, constants, slopes, plain.last)
        return found

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self._plain, *self._ratios))


def _rebuild(table: TokenTable, decode: float, prefill: float) -> Fp8Table:
    return Fp8Table(table, decode=decode, prefill=prefill)
