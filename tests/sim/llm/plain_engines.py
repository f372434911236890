"""Two LLM engines written out plainly, a request and a step at a time: what ServeTwin's fast one is compared with.

They share nothing with it: lists of dicts, every block counted, every request touched at every step. `prefill_first`
is vLLM 0.5.4's default scheduler, `unified` vLLM V1's (and, with its order of things, Sarathi's chunks).
"""

from __future__ import annotations


def _new(i, arrival, prompt, output):
    return {"id": i, "at": arrival, "prompt": prompt, "want": output, "computed": 0, "ends": [], "first": None}


def _blocks(tokens, size):
    return (tokens + size - 1) // size


def _take_in(coming, waiting, running, now):
    """What has come by *now* waits. An idle engine begins when the next comes, with all that come with it."""
    if not waiting and not running and coming[0]["at"] > now:
        now = coming[0]["at"]
    while coming and coming[0]["at"] <= now:
        waiting.append(coming.pop(0))
    return now


def prefill_first(rows, times, *, blocks, size=16, watermark=0.0, tokens=8192, sequences=256, headroom=0):
    """(arrival, prompt, output) rows, served; per request the ends of its tokens."""
    coming = [_new(i, *row) for i, row in enumerate(rows)]
    everyone, waiting, running, now = list(coming), [], [], -1.0
    free = blocks
    while coming or waiting or running:
        now = _take_in(coming, waiting, running, now)
        batch, lengths = [], 0
        while waiting and len(running) < sequences:
            head = waiting[0]
            n = head["prompt"] + len(head["ends"])
            if lengths + n > tokens or free - _blocks(n, size) < int(watermark * blocks):
                break
            free -= _blocks(n, size)
            lengths += n
            batch.append(waiting.pop(0))
            running.append(batch[-1])
        if batch:
            now += times.step(lengths, None, 0.0, 0, 0)
            for r in batch:
                r["computed"] = r["prompt"] + len(r["ends"])
        else:
            i = 0
            while i < len(running):
                r = running[i]
                need = 1 if r["computed"] % size == 0 else 0
                while free < max(need, headroom):
                    victim = running.pop()
                    free += _blocks(victim["computed"], size)
                    victim["computed"] = 0
                    waiting.insert(0, victim)
                    if victim is r:
                        break
                else:
                    free -= need
                    i += 1
            if not running:
                continue
            now += times.decode(len(running), sum(r["computed"] for r in running))
            for r in running:
                r["computed"] += 1
            batch = list(running)
        for r in batch:
            r["ends"].append(now)
            if len(r["ends"]) == r["want"]:
                running.remove(r)
                free += _blocks(r["computed"], size)
    return [r["ends"] for r in everyone]


def unified(rows, times, *, blocks, size=16, tokens=8192, sequences=256, whole=False):
    """The same under one token budget a step: running first, in order; then the queue; prompts in chunks."""
    coming = [_new(i, *row) for i, row in enumerate(rows)]
    everyone, waiting, running, now = list(coming), [], [], -1.0
    free = blocks
    while coming or waiting or running:
        now = _take_in(coming, waiting, running, now)
        budget, step, preempted, i = tokens, [], False, 0
        while i < len(running) and budget > 0:
            r = running[i]
            n = min(r["prompt"] + len(r["ends"]) - r["computed"], budget)
            need = _blocks(r["computed"] + n, size) - _blocks(r["computed"], size)
            while free < need:
                victim = running.pop()
                preempted = True
                free += _blocks(victim["computed"], size)
                victim["computed"] = 0
                waiting.insert(0, victim)
                if victim is r:
                    break
            else:
                free -= need
                budget -= n
                step.append((r, n))
                i += 1
        while waiting and not preempted and budget > 0 and len(running) < sequences:
            r = waiting[0]
            pending = r["prompt"] + len(r["ends"])
            n = min(pending, budget)
            if free < _blocks(pending if whole else n, size):
                break
            free -= _blocks(n, size)
            budget -= n
            step.append((waiting.pop(0), n))
            running.append(r)
        if not step:
            continue
        decode = [r for r, _ in step if r["ends"] and r["computed"] >= r["prompt"] and _pending(r) == 1]
        prefill = [(r, n) for r, n in step if r not in decode]
        context = sum(r["computed"] for r in decode)
        if prefill:
            chunks = sum(n * r["computed"] for r, n in prefill)
            squares = float(sum(n * n for _, n in prefill))
            now += times.step(sum(n for _, n in prefill), squares, chunks, len(decode), context)
        else:
            now += times.decode(len(decode), context)
        for r, n in step:
            r["computed"] += n
            if _pending(r) == 0:
                r["ends"].append(now)
                if len(r["ends"]) == r["want"]:
                    running.remove(r)
                    free += _blocks(r["computed"], size)
    return [r["ends"] for r in everyone]


def _pending(r):
    return r["prompt"] + len(r["ends"]) - r["computed"]
