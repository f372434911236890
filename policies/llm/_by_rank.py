"""Requests in an order of rank: who runs next, who loses its memory for that, and by what some are ranked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from servetwin.core import BadInput
from servetwin.core.llm import TokenTask, TokenView
from servetwin.core.llm.policy import Chunk


def predicted(task: TokenTask, view: TokenView, policy: str) -> int:
    """The output tokens that *task* is expected to put out. Raises `BadInput`, in the name of *policy*, if nobody
    says."""
    if task.predicted is None:
        what = f"{policy} needs predicted output lengths, and request {task.id} has none"
        raise BadInput(what, where=view.name, right="lengths with predict in the workload")
    return task.predicted


def never_fits(task: TokenTask, view: TokenView) -> bool:
    """Whether no step, or no memory, could hold all that *task* has pending."""
    least = max(view.watermark, view.limits.headroom)
    pending = task.pending
    return pending > view.max_batched_tokens or view.blocks_for(task.computed + pending) > view.blocks - least


def never_fitting(tasks: Iterable[TokenTask], view: TokenView) -> list[TokenTask]:
    """Those of *tasks* that `never_fits` holds of."""
    tokens, blocks = view.max_batched_tokens, view.blocks - max(view.watermark, view.limits.headroom)
    needed = view.blocks_for
    return [t for t in tasks if (p := t.pending) > tokens or needed(t.computed + p) > blocks]


def select(
    order: Iterable[TokenTask], holders: list[TokenTask], most: int, view: TokenView
) -> tuple[list[Chunk], list[TokenTask], list[TokenTask]]:
    """Prompts and decodes of the next step, and who loses its memory for them.

    *order* holds all that run or wait, the first to be served first, and *holders* those of them that run; up to
    *most* are taken. Where memory lacks for one, those behind it give theirs, the last one first, if that helps.
    After one that does not fit nobody else is admitted, but those that run go on as far as they fit.
    """
    prefill: list[Chunk] = []
    decode: list[TokenTask] = []
    preempt: list[TokenTask] = []
    running, tokens = view.running, view.max_batched_tokens
    free, room = view.free_blocks, view.max_sequences - len(running)
    by_rank, holders, passed = holders, holders[:], 0
    chosen: set[TokenTask] = set()
    blocked = False

    def candidates() -> Iterator[TokenTask]:
        nonlocal passed
        for task in order:
            passed += task in running
            yield task
            if blocked:
                break
        yield from by_rank[passed:]  # nobody else is admitted

    for task in candidates():
        if len(chosen) == most or task in preempt:
            break
        pending, runs = task.pending, task in running
        if pending > tokens or (blocked and not runs):
            blocked = True
            continue
        held = view.blocks_for(task.computed) if runs else 0
        needed = view.blocks_for(task.computed + pending) - held
        least = view.limits.headroom if runs else max(view.watermark, view.limits.headroom)
        taken = 0
        for last in () if blocked else reversed(holders):
            if (free - needed >= least and room + runs >= 1) or last is task or last in chosen:
                break
            taken += 1
            free += view.blocks_for(last.computed)
            room += 1
        if free - needed < least or room + runs < 1:
            free -= sum([view.blocks_for(last.computed) for last in holders[len(holders) - taken :]])
            room -= taken
            blocked = True
            continue
        if taken:
            preempt += holders[-taken:]
            del holders[-taken:]
        chosen.add(task)
        free, tokens, room = free - needed, tokens - pending, room - (not runs)
        if task.decoding and runs:
            decode.append(task)
        else:
            prefill.append((task, pending))
    prefill.sort(key=lambda chunk: chunk[0] not in running)  # those that hold memory first, as the engine asks
    return prefill, decode, preempt
