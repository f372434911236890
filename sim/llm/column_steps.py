"""What a step of an engine with requests as numbers computes, and how long it takes.

Each function here is made for one time that the engine is left to itself, by one that takes what does not change
meanwhile. Requests go by their places (`servetwin.sim.llm.column_requests`): *head* is the first without its first
token, those up to *taken* are in the queue. What is found is to the number what the policy would say and the engine
then take of it (`servetwin.core.llm.serving.engine`, `servetwin.sim.llm.lane`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop
from typing import TYPE_CHECKING

from .column_records import AT_ONCE
from .column_requests import BLOCK, ColumnRequests

if TYPE_CHECKING:
    from servetwin.core import Repeat
    from servetwin.core.llm import Fill

    from .lane import TokenLane

#: Nothing is prefilled; nor in the next step, though the policy would; the word ends, since memory is short.
NOTHING, NOTHING_NOW, SHORT = 0, -1, -2

#: Picks the prompts of a step that begins *now*: (now, head, taken, free blocks, number and context of those that
#: decode, tick) -> (how many, or one of the above; of how many no token is left; free blocks; seconds before noise).
Pick = Callable[[float, int, int, int, int, int, int], tuple[int, int, int, float]]

#: Those who generate their last token leave: (now, tick, free blocks, context and number of those that decode) ->
#: (the last three anew).
Leave = Callable[[float, int, int, int, int], tuple[int, int, int]]

#: Lets all decode: (now, when the engine is ready, when something is due, most steps on end, whether somebody waits,
#: tick, free blocks, number and context of those that decode) -> (all of these anew but *due*, *most* and *waits*).
Decode = Callable[[float, float, float, int, bool, int, int, int, int], tuple[float, float, int, int, int, int]]


def whole_prompts(at: ColumnRequests) -> Pick:
    """Prompts in the order of the queue, whole, in a step without decodes."""
    known = at.prefills
    engine, prompts, starts, timing = at.engine, at.prompts, at.starts, at.timing
    view, size, step_time = engine.view, engine.size, timing.times.step
    most, least, room, counted = view.max_batched_tokens, view.watermark, view.max_sequences, timing.counted
    preparing = timing.preparing

    def pick(
        now: float, head: int, taken: int, free: int, decoding: int, context: int, tick: int
    ) -> tuple[int, int, int, float]:
        places = room - decoding - at.spent
        if taken == head + 1 and prompts[head] in known:  # what is most common
            prompt = prompts[head]
            after = free + -prompt // size
            if not places or after < least:
                return NOTHING, 0, free, 0.0
            starts.append(now)
            return 1, 1, after, known[prompt]
        tokens = squares = many = 0
        for prompt in prompts[head:taken] if taken - head <= places else prompts[head : head + places]:
            tokens += prompt
            after = free + -prompt // size
            if tokens > most or after < least:
                tokens -= prompt
                break
            free = after
            squares += prompt * prompt
            many += 1
        if many == 1:
            starts.append(now)
            seconds = known[tokens] if tokens in known else step_time(tokens, float(squares), 0.0, 0, 0) + preparing
            if not counted:
                known[tokens] = seconds
            return 1, 1, free, seconds
        if many:
            starts.extend([now] * many)
            return many, many, free, step_time(tokens, float(squares), 0.0, 0, 0) + preparing * many
        return NOTHING, 0, free, 0.0

    return pick


def chunks(at: ColumnRequests, rule: Fill) -> Pick:
    """Chunks of prompts that fill up a step in which all decode (`servetwin.core.llm.policy.Fill`)."""
    engine, prompts, starts, timing = at.engine, at.prompts, at.starts, at.timing
    step_time, preparing = timing.times.step, timing.preparing
    view, size, phases, headroom = engine.view, engine.size, engine.phases, engine.headroom
    budget, cut = min(rule.tokens, view.max_batched_tokens), rule.cut
    least, most_running, engine_whole = view.watermark, view.max_sequences, view.whole_prompt
    whole = rule.whole_memory or engine_whole

    def pick(
        now: float, head: int, taken: int, free: int, decoding: int, context: int, tick: int
    ) -> tuple[int, int, int, float]:
        left = budget - decoding
        if left <= 0:
            return NOTHING, 0, free, 0.0
        part, place = at.part, head
        needed = phases[-tick % size] if decoding else 0  # blocks of those that decode
        tokens = squares = before = 0
        room = most_running - decoding - at.spent
        if part:
            tokens = min(prompts[head] - part, left)
            blocks = -part // size + -(-(part + tokens) // size)
            if needed + blocks + headroom > free:
                return SHORT, 0, free, 0.0
            free -= blocks
            squares, before = tokens * tokens, tokens * part
            left -= tokens
            part += tokens
            room -= 1
            place += 1
            if part == prompts[head]:
                part = 0
        begun = place
        while place < taken and left > 0 and room > 0:
            prompt = count = prompts[place]
            blocks = all_blocks = -(-prompt // size)
            if count > left:
                if not cut:
                    break
                count = left
                blocks = -(-count // size)
            if free - (all_blocks if whole else blocks) < least:
                break
            if place == head and decoding and needed + headroom > free:
                return SHORT, 0, free, 0.0
            if free - (all_blocks if engine_whole else blocks) < least + needed:
                if place == head:
                    return NOTHING_NOW, 0, free, 0.0  # the policy would, and the engine takes none of it
                break
            free -= blocks
            tokens += count
            squares += count * count
            left -= count
            room -= 1
            place += 1
            if count < prompt:
                part = count
        if not tokens:
            return NOTHING, 0, free, 0.0
        starts.extend([now] * (place - begun))
        at.part = part
        many = place - head
        seconds = step_time(tokens, float(squares), float(before), decoding, context) + preparing * (place - begun)
        return many, many - (part > 0), free, seconds

    return pick


def decodes(at: ColumnRequests, lane: TokenLane, repeat: Repeat, leave: Leave) -> Decode:
    """Steps on *lane* in which all decode, as *repeat* allows it: until something is due, or nobody decodes more."""
    engine, lines, counted = at.engine, at.lines, at.counted
    keep, note, leaving, phases = engine.keep_times, engine.ends.append, engine.leaving, engine.phases
    size, headroom, limit, drift = engine.size, engine.headroom, repeat.limit, repeat.drift
    straight, between, draw, tell = lane.straight, lane.between, lane.draw, at.tell

    def decode(
        now: float, ready: float, due: float, most: int, waits: bool, tick: int, free: int, decoding: int, x: int
    ) -> tuple[float, float, int, int, int, int]:
        batches, before = 0, now
        while True:
            times = leaving[0] - tick
            if most < times:
                times = most
            if (free - headroom) * size < decoding * (times + size - 1):
                times = at.affordable(times, free, tick)
                if not times:
                    at.short = True
                    break
            line = lines.get(decoding)
            if line is None or x < line[0] or x >= line[3]:
                line = lines[decoding] = (x, *straight(decoding, x), between(decoding))
            _, a, b, until, gap = line
            seconds = a + b * x
            if draw is not None:
                seconds *= draw()
            before, end, count = now, (ready if ready > now else now) + seconds, 1
            if keep:
                note(end)
            if draw is not None or drift or x + decoding * times > until:
                while count < times and end < due and end < limit + count * drift:
                    before = end
                    x += decoding
                    if x >= until:
                        a, b, until = straight(decoding, x)
                    seconds = a + b * x
                    if draw is not None:
                        seconds *= draw()
                    end = before + gap + seconds
                    if keep:
                        note(end)
                    count += 1
            else:
                horizon = due if due < limit else limit
                if keep:
                    while end < horizon and count < times:
                        before = end
                        x += decoding
                        end = before + gap + (a + b * x)
                        note(end)
                        count += 1
                else:
                    while end < horizon and count < times:
                        before = end
                        x += decoding
                        end = before + gap + (a + b * x)
                        count += 1
            if tell is not None:
                of_each = engine.ends[-count:] if count > 1 else None
                tell((now, end, decoding, x - decoding * (count - 1), free, of_each, 0, (), 0))
            now, ready = end, end + gap
            x += decoding
            counted[decoding] += count
            tick += count
            phase = -(tick - 1) % size
            free -= phases[phase] if count == 1 else grown(phases, phase, count)
            batches += 1
            if leaving[0] <= tick:
                free, x, decoding = leave(now, tick, free, x, decoding)
            if due <= now or waits or not decoding:
                break
        if batches:
            at.batches += batches
            at.last_step = at.last_decode = now - before
        return now, ready, tick, free, decoding, x

    return decode


def grown(phases: Sequence[int], at: int, count: int) -> int:
    """Blocks that those who decode take in *count* steps, the last of them that of phase *at*; *phases* are as in
    `TokenEngine`: those of the steps lie side by side, in a circle."""
    size = len(phases)
    if at + count <= size:
        return sum(phases[at : at + count])
    rounds, rest = divmod(count, size)
    blocks = sum(phases) * rounds
    return blocks + sum(phases[at : at + rest]) + sum(phases[: max(0, at + rest - size)])


def leaves(at: ColumnRequests) -> Leave:
    """Gives what is done when those who generate their last token at a tick have done so."""
    prompts, lengths, buckets, done, lasts, ticks = at.prompts, at.lengths, at.buckets, at.done, at.lasts, at.ticks
    engine = at.engine
    leaving, size, phases, ends, keep = engine.leaving, engine.size, engine.phases, engine.ends, engine.keep_times

    def leave(now: float, tick: int, free: int, context: int, decoding: int) -> tuple[int, int, int]:
        while leaving and leaving[0] <= tick:
            bucket = buckets.pop(heappop(leaving))
            if type(bucket[0]) is not int:
                bucket, free, context, decoding = at.let_go(bucket, now, tick, free, context, decoding)
            for place in bucket:
                computed = prompts[place] + lengths[place] - 1
                free -= -computed // size
                context -= computed
                phases[(computed - tick) % size] -= 1
            done.extend(bucket)
            many = len(bucket)
            decoding -= many
            lasts.extend([now] * many)
            ticks.extend([tick] * many)
        if len(done) > BLOCK:
            at.record()
        if at.records is not None:
            at.records.write(AT_ONCE)
        if keep and len(ends) > engine.trim_at:
            at.trim(tick)
        return free, context, decoding

    return leave
