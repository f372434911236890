"""Whether what a policy answers is an answer, and what tasks say is what they said.

What is common is looked at where it is used, in the loop and in engines; these are the words for what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PolicyFault
from ..policy import Decision, Repeat
from ..request import Task
from .code_inspection import named, own, writes
from .integrity import comes_along

#: So many answers on end by which a policy only idles, for less than `LEAST` seconds in all, are taken for idling for
#: ever; `MOST` are, however long they last.
OFTEN, LEAST, MOST = 10_000, 1.0, 1_000_000


def fault(policy: object, what: str, right: str | None = None, method: str = "decide") -> PolicyFault:
    """What is wrong with an answer of *policy*, and what would be right."""
    return PolicyFault(f"{named(policy, method=method)}: {what}" + (f" (right would be: {right})" if right else ""))


def write_fault(policies: Sequence[object], what: str, *names: str) -> PolicyFault:
    """One of *policies* has written *what*, which it may only read: the attribute of one of these *names*."""
    policies = [policy for policy in policies if not comes_along(type(own(policy)))] or policies
    for policy in policies:
        line = writes(policy, names)
        if line is not None:
            return PolicyFault(f"{named(policy, line)}: it wrote {what}, which policies may only read")
    who = ", or ".join(dict.fromkeys(named(policy) for policy in policies))
    return PolicyFault(f"{who}: it wrote {what}, which policies may only read")


def compared(
    policies: Sequence[object], of: str, names: Sequence[str], now: Sequence[Any], before: Sequence[Any]
) -> PolicyFault:
    """One of *policies* has written *names* *of* a thing, which say something else *now* than *before*."""
    for name, a, b in zip(names, now, before, strict=True):
        if not (a is b or a == b):
            return write_fault(policies, f"{name} of {of} (it says {shown(a)}, not {shown(b)})", name)
    return write_fault(policies, f"{of}", *names)


def check_decision(policy: object, decision: Any, kind: type[Decision] = Decision) -> None:
    """Raise `PolicyFault` unless *decision* is one, its lists are lists of tasks and its `Repeat` is one."""
    if not isinstance(decision, kind):
        raise fault(policy, f"decide returned {shown(decision)}", f"a {kind.__name__}")
    lists = ("prefill", "decode", "preempt", "drop") if kind is not Decision else ("run", "drop")
    for name in lists:
        given = getattr(decision, name, None)
        if type(given).__name__ == "All" and name == "decode":
            continue
        if not isinstance(given, Sequence) or isinstance(given, str | bytes):
            raise fault(policy, f"{name} of its decision is {shown(given)}", "a list of tasks")
        for item in given:
            check_item(policy, name, item)
    if kind is not Decision:
        right = kind(decision.prefill, decision.decode, preempt=decision.preempt, drop=decision.drop)  # type: ignore
        if decision.plain != right.plain:  # type: ignore[attr-defined]
            what = f"its Step was changed after it was made (plain of its decision is {shown(decision.plain)})"  # type: ignore
            raise fault(policy, what, "a new Step")
    else:
        check_actions(policy, decision)
    check_repeat(policy, decision.repeat)
    check_time(policy, decision.idle_until)


def check_actions(policy: object, decision: Decision) -> None:
    """Raise `PolicyFault` unless what *decision* says of steps is what it may be, whatever the stage allows."""
    if decision.steps is not None and not isinstance(decision.steps, Mapping):
        raise fault(policy, f"steps of its decision is {shown(decision.steps)}", "{task: steps}, or None")
    reuse: Any = decision.reuse
    if not isinstance(reuse, Sequence) or isinstance(reuse, str | bytes):
        raise fault(policy, f"reuse of its decision is {shown(reuse)}", "a list of tasks")
    for item in (*(decision.steps or ()), *reuse):
        check_item(policy, "steps or reuse", item)
    devices: Any = decision.devices
    if not isinstance(devices, Sequence) or not all(type(device) is int for device in devices):
        raise fault(policy, f"devices of its decision is {shown(devices)}", "numbers of view.group.free")


def check_item(policy: object, name: str, item: Any) -> None:
    """Raise `PolicyFault` unless *item* is what the list *name* of a decision holds."""
    if name == "prefill":
        if not isinstance(item, tuple) or len(item) != 2:
            what = item[0] if isinstance(item, tuple) and item else item
            raise fault(policy, f"prefill of its decision holds {shown(what)}", "(task of its view, tokens)")
        item, count = item
        if isinstance(item, Task) and type(count) is not int:
            raise fault(policy, f"prefill of its decision holds {shown(count)} tokens of {item}", "an int")
    if not isinstance(item, Task):
        raise fault(policy, f"{name} of its decision holds {shown(item)}", "tasks of its view")


def check_kept(policy: object, kept: Any) -> bool:
    """Whether a policy keeps a task, of which it said *kept*. Raises `PolicyFault` if that is no answer."""
    if type(kept) is not bool and type(kept).__module__ != "numpy":
        raise fault(policy, f"admit returned {shown(kept)}", "True or False", "admit")
    return bool(kept)


def check_time(policy: object, when: Any) -> None:
    """Raise `PolicyFault` unless *when* is a time, or None."""
    if when is not None and (
        isinstance(when, bool) or not isinstance(when, int | float) or (isinstance(when, int) and abs(when) > 1 << 53)
    ):
        raise fault(policy, f"it idles until {shown(when)}", "seconds since the run began, a float")


def check_whole(policy: object, whole: Any) -> bool:
    """Whether a batch runs to its end, of which a policy said *whole*. Raises `PolicyFault` if that is no answer."""
    if type(whole) is not bool and type(whole).__name__ not in ("bool_", "bool"):  # of NumPy
        raise fault(policy, f"whole of its decision is {shown(whole)}", "True or False")
    return bool(whole)


def check_repeat(policy: object, repeat: Any) -> None:
    """Raise `PolicyFault` unless *repeat* is a `Repeat` of numbers, or None."""
    if repeat is None:
        return
    if not isinstance(repeat, Repeat):
        raise fault(policy, f"repeat of its decision is {shown(repeat)}", "a Repeat")
    if type(repeat.times) is not int or repeat.times < 1:
        raise fault(policy, f"it repeats its decision {shown(repeat.times)} times", "an int from 1")
    for name in ("limit", "drift", "longest"):
        value = getattr(repeat, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise fault(policy, f"{name} of its Repeat is {shown(value)}", "seconds, a float")


def shown(thing: object) -> str:
    """*thing* in a line of bounded length."""
    try:
        text = repr(thing).replace("\n", " ")
    except Exception:  # a policy's own class may fail here too
        text = f"a {type(thing).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
