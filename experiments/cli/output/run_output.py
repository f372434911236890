"""What ``servetwin run`` prints: the answer first, then what it stands on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput

from .terminal import print_figures, say

if TYPE_CHECKING:
    from ...reporting.windows import Windows
    from ...spec.experiment import Experiment
    from ...validation.replay.host_band import OnHost

#: So many windows are told of a line each.
MOST_WINDOWS = 40
#: So many classes, or tenants, are told of a line each.
MOST_GROUPS = 12


def use_of(folder: Path) -> dict[str, Any]:
    """How busy devices were and how full KV caches, by the records in *folder*: shares of the time, and of the tokens
    that a cache has room for (only where its profile is here), on average and at most; of the time from the first
    arrival to the last end."""
    from ...reporting.timeline import read

    line = read(folder)
    kv = {
        worker: {
            "mean": line.mean(line.kv[worker]) / room,
            "max": line.kv[worker].peak / room,
            "tokens": room,
        }
        for worker, room in line.capacity.items()
    }
    return {"devices": {name: line.mean(level) for name, level in line.busy.items()}, "kv_cache": kv}


def show_run(experiment: Experiment, summary: dict[str, Any], took: float, use: dict[str, Any] | None) -> None:
    """The *summary* of a run that *took* so many seconds to compute; *use* is as `use_of` gives it."""
    from ...sweeps.point import served_by, title

    total = summary["requests"]
    say(f"{title(experiment)}: {total} requests")
    say(_answer(summary))
    say(f"deployment {served_by(experiment)}")
    print_figures(
        (("", "left"), ("requests", "right"), ("share", "right")),
        [
            (count, str(summary[count]), f"{100 * summary[count] / total:.1f} %" if total else "")
            for count in ("met", "late", "dropped", "failed")
        ],
    )
    if summary.get("cut_off"):
        after = experiment.system.stop_after
        when = f", {after:g} s after the last was sent" if after is not None else ""
        say(f"{summary['cut_off']} of the failed were under way when the run was cut off{when}")
    if failed := summary.get("failed_most"):
        other = summary["failed"] - summary.get("cut_off", 0) - failed["requests"]
        more = f"; {other} failed for other reasons (requests.jsonl, with --out)" if other else ""
        say(f"{failed['requests']} failed: {failed['reason']}{more}")
    if summary["request_goodput"] is not None:
        say(f"goodput {summary['request_goodput']:.3f} of {total / summary['duration']:.3f} requests/s")
    if summary["finished"]:
        times = ", ".join(f"{p} {summary[f'{p}_e2el_ms'] / 1000:.2f} s" for p in ("mean", "median", "p90", "p99"))
        say(f"latency {times}")
    offloading = {w.modules[0] for w in experiment.deployment.workers if w.engine and w.engine.kv_offloading}
    for stage, tokens in summary.get("llm", {}).items():
        show_tokens(stage, tokens, offloads=stage in offloading)
    for line in (*quality_lines(summary), *device_lines(summary), *group_lines(summary)):
        say(line)
    for worker, w in summary["workers"].items():
        sizes = f"mean {w['mean_batch_size']:.2f}, largest {w['max_batch_size']}"
        say(f"batches of {worker}: {w['iterations']} run, {sizes}")
    fleet, groups = summary.get("fleet"), {w.device for w in experiment.deployment.workers if w.gpus}
    costs = cost_lines(summary.get("cost"), summary["duration"], fleet)
    told = *fleet_lines(fleet), *fault_lines(summary.get("faults")), *placement_lines(summary.get("placement"))
    for line in (*told, *costs, *_use_lines(use, groups)):
        say(line)
    for line in (
        *_idle_policies(experiment),
        *_not_entered(experiment),
        *input_lines(summary),
        *_doubts(experiment, summary),
    ):
        say(line)
    say(f"{summary['duration']:.0f} s served in {took:.2f} s")


def _answer(summary: Mapping[str, Any]) -> str:
    if not summary["requests"]:
        return "no request was sent"
    told = f"{100 * summary['met'] / summary['requests']:.1f} % met their SLO"
    if summary["request_goodput"] is not None:
        told += f": {summary['request_goodput']:.3f} requests/s"
    tokens = [t for t in summary.get("llm", {}).values() if t.get("token_goodput") is not None]
    if len(tokens) == 1:
        told += f", {tokens[0]['token_goodput']:.1f} tokens/s on time"
    return told


def _use_lines(use: dict[str, Any] | None, groups: Collection[str | None] = ()) -> list[str]:
    """Of devices that are *groups* of several `device_lines` tells."""
    if use is None:
        return []
    alone = {name: share for name, share in use["devices"].items() if name not in groups}
    lines = [f"{name} busy {100 * share:.1f} % of the time" for name, share in alone.items()]
    lines += [
        f"KV cache of {worker} {100 * own['mean']:.1f} % full on average, {100 * own['max']:.1f} % at most"
        for worker, own in use["kv_cache"].items()
    ]
    return lines


def _idle_policies(experiment: Experiment) -> list[str]:
    """Which policies have nothing to choose here, for want of what they go by (`Policy.uses_actions`), and whether
    the autoscaler has."""
    from ...assembly.build import policies_used
    from ...registry.policy_registry import find_policy

    actions = [module.actions for module in experiment.pipeline.modules.values() if module.actions is not None]
    lines = []
    for name in policies_used(experiment):
        keys = getattr(find_policy(name), "uses_actions", ())
        wanting = [key for key in keys if not any(getattr(own, key, None) for own in actions)]
        if wanting:
            what = ", ".join(f"actions.{key}" for key in wanting)
            lines.append(f"policy {name} has no steps to choose: no module has {what} (pipeline.modules.NAME)")
    scaler, replicas = experiment.deployment.autoscaler, experiment.deployment.replicas
    if scaler is not None and scaler.least >= replicas and scaler.initial in (None, replicas):
        name, what = scaler.name, f"least is {scaler.least}, and deployment.replicas, the most, is {replicas}"
        lines.append(f"autoscaler {name} has nothing to choose: {what}")
    return lines


def _not_entered(experiment: Experiment) -> list[str]:
    """What the pipeline begins with and no class of requests enters."""
    pipeline, load = experiment.pipeline, experiment.workload
    known = [own.enters for own in load.classes.values()]
    if not known or None in known or load.recorded is not None:
        return []  # some begin at all of them, or a trace names classes of its own
    targets = {target for _, target in pipeline.edges or ()} | {branch.to for branch in pipeline.branches}
    entered = {module for enters in known for module in enters or ()}
    never = [name for name in pipeline.modules if name not in targets | entered]
    where = "workload.classes: enters"
    return [f"no request comes to {', '.join(never)}: no class enters there ({where})"] if never else []


def _doubts(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """What the numbers stand on that is not clean or was not measured; and what was measured of the same."""
    from servetwin.profiles import load as load_profile
    from servetwin.profiles import verdict

    from ...validation.comparison.run_table import matching

    lines = [
        f"profile {device} is not clean: {faults} (servetwin profiles {device})"
        for device in dict.fromkeys(experiment.deployment.devices_used.values())
        if (faults := verdict.short(load_profile(device).data))
    ]
    for held in summary.get("held", ()):
        asked = f"{held['steps']} steps of {held['worker']}, up to {held['largest_asked']} {held['of']}"
        known = f"{held['profile']} knows {held['largest_known']} at most, whose value was held"
        lines.append(f"beyond what was measured: {asked}; {known}")
    lines += [f"measured on {was.start}: {was.met} met, {was.finished} finished" for was in matching(experiment)]
    return lines


def input_lines(summary: dict[str, Any]) -> list[str]:
    """What is to be said of the requests of a run: which part of a trace they are, and what was cut of them."""
    lines = list(summary.get("basis", ()))
    if trace := summary.get("trace"):
        part = f"requests {trace['first']:g} s to {trace['last']:g} s after the first"
        lines.append(f"trace: {trace['requests']} of {trace['requests_in_file']} {part}")
        if trace["failed_left_out"]:
            lines.append(f"trace: {trace['failed_left_out']} requests had failed when it was taken, and are left out")
        if trace.get("empty_prompts"):
            lines.append(f"trace: {trace['empty_prompts']} prompts of no token count as one token")
        for column, key in trace.get("not_used", {}).items():
            why = f"{key} does not say {{draw: trace}}, which uses it" if key else "nothing here takes it"
            lines.append(f"trace: column {column} is not used: {why}")
        lines += [f"trace: {trace[key]}" for key in ("doubt", "other_images") if trace.get(key)]
        if summary["requests"] > 1 and summary["arrival_span"] == 0.0:
            lines.append("all requests arrive at once: there is no rate")
    for worker, said in summary.get("shapes", {}).items():
        most = ", ".join(f"{n} of {shape}" for shape, n in said["limits"].items())
        room = f"; {said['gib']:.3g} GiB for requests" if "gib" in said else ""
        lines.append(f"batches of {worker}: at most {most}{room}")
    if published := summary.get("published"):
        lines.append(f"seed {published['seed']}: {published['kept']}")
    for module, told in summary.get("predictions", {}).items():
        lines.append(f"outputs of {module} are predicted; {told}")
    if told := summary.get("prefix"):
        lines.append(f"prefix: {told}")
    for module, cut in summary.get("cut", {}).items():
        prompts, outputs = (f"{cut[f'{what}s']} {what}s by {cut[f'{what}_tokens']}" for what in ("prompt", "output"))
        some = cut["prompts"] or cut["outputs"]
        lines.append(f"cut at {module}: {f'{prompts} tokens, {outputs}' if some else 'nothing'}")
    if (ended := summary.get("sessions")) and ended["sessions"]:
        lines.append(
            f"sessions that ended before what does not fit: {ended['sessions']}; {ended['turns']} turns not sent"
        )
    return lines


def group_lines(summary: Mapping[str, Any]) -> list[str]:
    """What came of each class and each tenant, a line each, and how evenly tenants were served."""
    lines = []
    for kind, groups in (("class", summary.get("classes", {})), ("tenant", summary.get("tenants", {}))):
        for name, found in list(groups.items())[:MOST_GROUPS]:
            share, goodput = 100 * found["attainment"], found["request_goodput"] or 0.0
            lines.append(f"{kind} {name}: {found['requests']} requests, {share:.1f} % met, goodput {goodput:.3f}/s")
        if len(groups) > MOST_GROUPS:
            lines.append(f"and {len(groups) - MOST_GROUPS} more of that kind, in summary.json")
    if fairness := summary.get("fairness"):
        known = [(name.removeprefix("jain_"), value) for name, value in fairness.items() if value is not None]
        lines.append("Jain's index: " + ", ".join(f"{value:.3f} of {name}" for name, value in known))
    return lines


def quality_lines(summary: Mapping[str, Any]) -> list[str]:
    """What results are worth where steps may be left out, by the experiment's table."""
    found = summary.get("quality")
    if found is None or found["mean_quality"] is None or not found["steps_asked"]:
        return []
    said = f"quality {found['mean_quality']:.3f} on average, {found['quality_goodput'] or 0.0:.3f}/s in time"
    run = f"{100 * found['steps_run'] / found['steps_asked']:.1f} % of the steps asked for were run"
    full = f"{100 * found['attainment_at_full_steps']:.1f} % of the requests in time with all of theirs"
    return [f"{said}; {run}; {full}"]


def device_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was used of groups of devices, by worker."""
    lines = []
    for worker, used in summary.get("device_groups", {}).items():
        if used["mean_degree"] is not None and summary["duration"] > 0.0:
            share = used["device_seconds"] / (used["devices"] * summary["duration"])
            said = f"{used['devices']} devices of {worker} used {100 * share:.1f} % of the time"
            lines.append(
                f"{said}, {used['mean_degree']:.2f} a batch on average; {used['changes']} changes of devices"
            )
    return lines


def show_tokens(stage: str, tokens: dict[str, Any], *, offloads: bool = False) -> None:
    """What a run says of the tokens of a *stage*; *offloads*: its engines keep KV in host memory, too."""
    made = f"{tokens['output_throughput'] or 0.0:.1f}"
    if "token_goodput" in tokens:
        say(f"tokens of {stage}: {tokens['token_goodput'] or 0.0:.1f} on time of {made} generated per second")
    else:
        say(f"tokens of {stage}: {made} generated per second")
    if tokens["mean_ttft_ms"] is not None:
        for name in ("ttft", "tpot", "itl"):
            if tokens[f"mean_{name}_ms"] is not None:
                known = ((p, tokens.get(f"{p}_{name}_ms")) for p in ("mean", "median", "p90", "p99"))
                times = ", ".join(f"{p} {value:.1f}" for p, value in known if value is not None)
                say(f"  {name} {times} ms")
    if tokens.get("prefix_cache_hit_rate") is not None:
        rate, hits = 100 * tokens["prefix_cache_hit_rate"], tokens["prefix_cache_hits"]
        again = tokens["prefix_cache_hits_of_preempted"]
        say(f"  prefix cache: {rate:.1f} % of prompt tokens found, {hits}; {again} more by preempted requests")
    if offloads:
        rate = 100 * tokens.get("prefix_cache_hit_rate_on_host", 0.0)
        hits = tokens.get("prefix_cache_hits_on_host", 0)
        say(f"  of that {rate:.1f} points, {hits} tokens, in host memory alone")
    if "adapter_loads" in tokens:
        say(f"  {tokens['adapter_loads']} adapters loaded")
    if tokens.get("spec_decode_num_drafts"):
        drafted, accepted = tokens["spec_decode_num_draft_tokens"], tokens["spec_decode_num_accepted_tokens"]
        say(f"  {accepted} of {drafted} drafts accepted, {tokens['mean_acceptance_length']:.2f} tokens a step")
    if tokens.get("handovers"):
        wait, way = tokens["mean_handover_wait_ms"], tokens["mean_handover_ms"]
        say(f"  {tokens['handovers']} handed over: mean wait {wait:.1f} ms, {way:.1f} ms on the way")
    if tokens.get("handover_hit_rate") is not None:
        rate, hits = 100 * tokens["handover_hit_rate"], tokens["handover_hits"]
        say(f"  of their prompts {rate:.1f} %, {hits} tokens, found where they decode and not sent")
    if "within_limits" in tokens:
        say(f"  {tokens['within_limits']} requests within the limits")


def fleet_lines(fleet: Mapping[str, Any] | None) -> list[str]:
    """How many replicas there were, where they come and go."""
    if fleet is None:
        return []
    mean, most = fleet["mean_replicas"], fleet["most_replicas"]
    many = f"replicas: {mean:.4g} on average, " if mean is not None else "replicas: "
    return [f"{many}{most} at most, {fleet['starts']} starts; {fleet['waited_for_a_replica']} waits for one"]


def fault_lines(faults: Mapping[str, Any] | None) -> list[str]:
    """What failed, where something may."""
    if faults is None:
        return []
    some = [
        f"{100 * own['availability']:.2f} % of the time {name}"
        for name, own in faults["workers"].items()
        if own["failures"] and own["availability"] is not None
    ]
    more = len(some) - 4
    told = f"{', '.join(some[:4])}{f', and {more} more' if more > 0 else ''} up" if some else "nothing was down"
    noticed = faults["mean_seconds_to_notice"]
    when = f", noticed after {noticed:.4g} s on average" if noticed is not None else ""
    lines = [f"faults: {faults['failures']} failures{when}; {told}"]
    lost = f"{faults['visits_lost']} visits lost, {faults['visits_retried']} sent again"
    cut = f"{faults['lost_device_seconds']:.4g} s of computing lost in batches that were cut off"
    lines.append(f"{lost}, {faults['gave_up']} requests given up; {cut}")
    if faults["out_of_memory"]:
        lines.append(f"{faults['out_of_memory']} batches did not fit into memory")
    return lines


def placement_lines(placement: Mapping[str, Any] | None) -> list[str]:
    """What a run says of cards that several models share."""
    if placement is None:
        return []
    models = ", ".join(f"{name} {own['swaps']}" for name, own in placement["models"].items())
    each = f" ({models})" if models else ""
    return [f"weights: {placement['swaps']} swaps{each}, {placement['seconds_swapping']:.1f} s in all"]


def cost_lines(cost: Mapping[str, Any] | None, duration: float, fleet: Mapping[str, Any] | None = None) -> list[str]:
    """What a run of so many seconds (*duration*) costs, where its devices have prices; of a *fleet*, if it is one."""
    if cost is None:
        return []
    each = [(cost["dollars_per_1000_requests"], "1,000 requests")]
    each.append((cost.get("dollars_per_million_output_tokens"), "million output tokens"))
    per = [f"${value:.4g} per {what}" for value, what in each if value is not None]
    if cost["met_per_dollar"] is not None:
        per.append(f"{cost['met_per_dollar']:.4g} met their SLO per dollar")
    hours = duration / 3600.0
    count = round(cost["device_hours"] / hours) if hours else 1
    rate = f"at ${cost['dollars_per_hour']:g} an hour"
    if fleet is not None:
        held = f"{cost['device_hours']:.4g} device-hours in {hours:.4g} hours, {rate} on average"
    else:
        held = f"{hours:.4g} hours {rate}" if count == 1 else f"{hours:.4g} hours of {count} devices, {rate} together"
    lines = [f"cost ${cost['dollars']:.4g}: {held}", ", ".join(per)]
    if cost["utilisation"] is not None:
        power = f"; {cost['energy_kwh']:.4g} kWh" if cost["energy_kwh"] is not None else ""
        swaps = f" ({100 * moving:.1f} % weights moved)" if (moving := cost.get("utilisation_by_swaps")) else ""
        lines.append(f"devices busy {100 * cost['utilisation']:.1f} % of the time{swaps}{power}")
    return [line for line in lines if line]


def check_windows(experiment: Experiment, out: Path | None, seconds: float | None, objective: float | None) -> None:
    """Raise `BadInput` if windows are asked for that nothing could be told of, before anything runs."""
    if objective is not None and seconds is None:
        raise BadInput("the burn is that of windows", where="--objective", right="--windows SECONDS besides")
    if seconds is not None:
        if out is None:
            raise BadInput(
                "windows are told from the records of a run", where="--windows", right="--out FOLDER besides"
            )
        from ...reporting.windows import check
        from ...workload.requests import half_sent

        check(seconds, objective)
        check(seconds, objective, half_sent(experiment))


def show_windows(found: Windows) -> None:
    """A run by windows, and its overloads."""
    rows = []
    for window in found.windows[:MOST_WINDOWS]:
        met = f"{100 * window.attainment:.1f} %" if window.attainment is not None else ""
        burn = [] if found.objective is None else ["" if window.burn is None else f"{window.burn:.1f}"]
        told = [f"{window.begin:g} to {window.end:g} s", str(window.requests), met, *burn, str(window.waiting)]
        rows.append([*told, window.verdict])
    burnt = [] if found.objective is None else ["burn"]
    names = ["window", "requests", "met", *burnt, "waiting at its end", "verdict"]
    sides = ["left", *["right"] * (len(names) - 2), "left"]
    print_figures([*zip(names, sides, strict=True)], rows)
    if len(found.windows) > MOST_WINDOWS:
        say(f"and {len(found.windows) - MOST_WINDOWS} more windows (--json, or longer ones)")
    for line in found.lines():
        say(line)


def show_real(real: dict[str, Any]) -> None:
    """How punctual the client of a real run was, and what lay between iterations."""
    from ...backends import over_profile

    for what, key in (("client late by", "lateness_ms"), ("between iterations", "gap_ms")):
        if spread := real[key]:
            say(f"{what} {spread['median']:.3f} ms in the median, p99 {spread['p99']:.3f} ms")
    for line in over_profile.lines(real):
        say(line)
    for worker, seconds in real.get("restarts", {}).items():
        took = ", ".join(f"{one:.2f}" for one in seconds[:4])
        more = ", ..." if len(seconds) > 4 else ""
        say(f"{worker} was started again: {_times(len(seconds))}, ready after {took}{more} s")
    if host := real.get("host"):
        from servetwin.profiles.llm import launch_times  # which simulations do without

        say(launch_times.line(host["over_profile"], host["profile"]))


def show_hosts(found: Sequence[OnHost]) -> None:
    """What the run comes to on hosts of other speeds."""
    from ...validation.replay.host_band import LATENCIES, verdict

    seeds = found[0].seeds
    of = f"means of {seeds} draws of the noise" if seeds > 1 else "without noise"
    say(f"by the time that the host takes to launch steps, over the profile's ({of})")
    columns: list[tuple[str, Any]] = [("host", "left"), ("in time, %", "right"), ("goodput /s", "right")]
    columns += [(f"mean {name.split('_')[1]}, ms", "right") for name in LATENCIES]
    rows = [
        [
            one.name,
            f"{100 * one.attainment:.1f}",
            f"{one.goodput:.3f}",
            *("" if (ms := one.latencies[name]) is None else f"{ms:.1f}" for name in LATENCIES),
        ]
        for one in found
    ]
    print_figures(columns, rows)
    say(verdict(found))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
