"""Validation runs: take each model's profile, serve it under each policy below, at and above its knee, and replay.

    python tests/real/diffusion/campaign.py run --device cuda:0 --out DIR --seconds 500 MODEL ...    # on the device
    python tests/real/diffusion/campaign.py replay DIR                                 # anywhere: real beside
    simulated

Each model has a process and a share of the time of its own; what was recorded is packed when it is done, and whatever
breaks or takes too long does not end the rest. The profile is taken before the runs and never changed after.
The knee is where the simulation, with that profile, meets `AIM` of the requests under NeuStream; loads are multiples
of that rate. Every run leaves a run folder with ``real.json`` beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

#: Share of requests met that defines the knee.
AIM = 0.95
#: Seconds that a run takes beside the time in which its requests arrive.
EXTRA = 1.0


@dataclass(frozen=True)
class Plan:
    """What is served of a model: batches of up to *limit* (*once*, where a module has no loop), requests that ask for
    one of *steps* and may take *factor* times as long as alone. *share* is its part of the campaign's time.
    """

    limit: int
    steps: tuple[int, ...]
    once: int = 4
    requests: int = 300
    factor: float = 4.0
    share: float = 1.0
    seconds: float = 0.25  # of measuring each point of the profile


PLANS = {
    "dit-s2-256": Plan(8, (30, 40, 50), requests=600, share=1.0),
    "dit-xl2-256": Plan(8, (16, 20, 24), requests=400, share=1.3),
    "palette-256": Plan(6, (8, 10, 12), share=1.3),
    "sd15-256": Plan(6, (8, 10, 12), factor=5.0, share=1.2),
    "sd15-512": Plan(6, (8, 10, 12), factor=5.0, share=2.6, seconds=0.2),
    "tiny-sd": Plan(3, (10, 14), once=2, requests=40, seconds=0.05),
    "tiny-dit": Plan(3, (30, 40), once=2, requests=40, seconds=0.05),
    "tiny-palette": Plan(3, (12, 16), once=2, requests=40, seconds=0.05),
}

#: (load, cv of the gaps between arrivals, factor on the plan's SLO factor, repeat), the most telling first.
CELLS = [
    (1.0, 1.0, 1.0, 0),
    (1.3, 1.0, 1.0, 0),
    (0.85, 1.0, 1.0, 0),
    (1.0, 1.0, 1.0, 1),
    (0.9, 2.0, 1.0, 0),
    (0.9, 1.0, 0.7, 0),
    (1.3, 1.0, 1.0, 1),
    (0.6, 1.0, 1.0, 0),
]
SERVED = ("neustream", "clockwork", "edf")


# -- one experiment, in either world ----------------------------------------------------------------------------


def system(kind, profile, policy, plan, factor):
    """Fresh stages and workers; Clockwork has one worker for the whole pipeline."""
    from servetwin.experiments.registry.policy_registry import find_policy
    from servetwin.real.diffusion.profiling.microbenchmarks import workers_of

    placement = [list(kind.modules)] if policy == "clockwork" else kind.placement
    stages = kind.pipeline().stages(placement)
    make = find_policy(policy)
    return stages, workers_of(
        stages, [make() for _ in stages], plan.limit, "gpu0", profile.estimate(), factor, once=plan.once
    )


def workload(kind, profile, plan, rate, cv, factor, seed=0):
    """Requests with gamma gaps of this *cv* between arrivals."""
    import numpy as np
    from servetwin.core import FactorSLO, Request

    slo = FactorSLO(factor, profile.solo())
    rng = np.random.default_rng(seed)
    steps = rng.choice(plan.steps, plan.requests)
    due = np.cumsum(rng.gamma(1 / cv**2, cv**2 / rate, plan.requests))
    works = [{kind.loop: int(n)} for n in steps]
    return [Request(i, float(due[i]), slo.seconds(work), work) for i, work in enumerate(works)]


def simulate(kind, profile, policy, plan, factor, requests, *, options=None, recorder=None, seed=0, stop_after=10.0):
    """The summary of *requests* in simulation."""
    from servetwin.core import Recorder, Request, ServingLoop
    from servetwin.core.serving.client import play
    from servetwin.sim.measured import TimeOptions, measured_executor

    stages, workers = system(kind, profile, policy, plan, factor)
    executor = measured_executor({"gpu0": profile}, workers, options or TimeOptions(noise=False), seed=seed)
    recorder = recorder or Recorder()
    loop = ServingLoop(stages, workers, executor, recorder)
    play(loop, iter([Request(r.id, r.arrival, r.slo, r.work) for r in requests]))
    executor.call_at(requests[-1].arrival + stop_after, loop.stop)
    executor.run_until_idle()
    return recorder.summary


def knee(kind, profile, plan):
    """The rate at which the simulation meets `AIM` of the requests under NeuStream."""
    best = max(n / profile.table(kind.loop, "measured")(n) for n in range(1, plan.limit + 1))
    high = best / (sum(plan.steps) / len(plan.steps))
    low = 0.1 * high
    for _ in range(7):
        middle = (low + high) / 2
        requests = workload(kind, profile, plan, middle, 1.0, plan.factor)
        if simulate(kind, profile, "neustream", plan, plan.factor, requests).attainment >= AIM:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# -- on the device ---------------------------------------------------------------------------------------------


def serve_model(model: str, out: Path, device: str, options: dict, cells: int, served: list[str]) -> None:
    """Profile *model* and serve it under each policy of *served*. Waits for a line on standard input that says how
    many seconds there are."""
    from servetwin.core import RunFolder, ServeTwinError
    from servetwin.experiments.registry import policy_registry
    from servetwin.profiles import load
    from servetwin.real import KINDS, Options, Server
    from servetwin.real.diffusion.profiling.profile_writer import as_profile, write_profile
    from servetwin.real.diffusion.profiling.profiler import Profiler

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}] {model}: {text}", flush=True)

    plan, kind = PLANS[model], KINDS[model]
    server = Server(model, Options.of({"device": device, **options.get(model, options)}))
    server.device_slots("gpu0")  # everything up to here disturbs nobody
    say("loaded")
    (out / "loaded").touch()
    allowed = sys.stdin.readline()
    if not allowed:
        return
    began = time.monotonic()
    until = began + float(allowed)
    # What each policy takes between two iterations is measured, by the name of its class as profiles have it;
    # Clockwork has no iterations, its batches run as wholes.
    params = {
        p: {"bound": plan.limit} if p == "neustream" else {} for p in ("neustream", *served) if p != "clockwork"
    }
    policies = {
        policy_registry.find_policy(p).__name__.lower(): lambda p=p: policy_registry.make(p, params[p])
        for p in params
    }
    ends = (min(plan.steps), max(plan.steps))
    profiler = Profiler(
        server, limit=plan.limit, once=plan.once, policies=policies, seconds=plan.seconds, whole_steps=ends
    )
    for module in (*kind.modules, *(["output"] if "vae" not in kind.modules else [])):
        server.device_slots("gpu0").warm(module, plan.limit if module in (kind.loop, "output") else plan.once)
        say(f"{module} warm")
    measured = profiler.take(brief=True)
    say(f"profile: {profiler.took}")
    path = out / "profiles" / f"{model}.yaml"
    write_profile(as_profile(profiler, measured, f"measured/{model}", "tests/real/diffusion/campaign.py run"), path)
    kept = ("iteration", "plain", "gap", "stages", "modules", "crowds", "between")
    raw = {k: {str(n): v for n, v in getattr(measured, k).items()} for k in kept}
    raw |= {"joins": measured.joins, "leaves": measured.leaves, "leaving": measured.leaving, "took": profiler.took}
    raw |= {"rates": [[list(k), *n, v] for k, by in measured.rates.items() for n, v in by.items()]}
    raw |= {"whole": [[*k, v] for k, v in measured.whole.items()], "client": measured.client}
    (out / "profiles" / f"{model}.raw.json").write_text(json.dumps(raw))
    profile = load(path)
    rate = knee(kind, profile, plan)
    say(f"knee at {rate:.2f} requests/s")
    for share, cv, stricter, repeat in CELLS[:cells]:
        factor = plan.factor * stricter
        for policy in served:
            requests = workload(kind, profile, plan, share * rate, cv, factor)
            name = f"{model}-{policy}-{share:g}-cv{cv:g}-slo{factor:g}-{repeat}"
            if time.monotonic() + requests[-1].arrival + EXTRA > until:
                say(f"no time for {name}")
                continue
            meta = {**server.describe(), "model": model, "policy": policy, "load": share, "rate": share * rate}
            meta |= {"cv": cv, "factor": factor, "repeat": repeat, "plan": asdict(plan), "knee": rate}
            recorder = RunFolder(out / "runs" / name, meta)
            stages, workers = system(kind, profile, policy, plan, factor)
            try:
                report = server.serve(stages, workers, requests, recorder, stop_after=10.0)
            except ServeTwinError as problem:
                recorder.close(complete=False)
                say(f"{name}: {problem}")
                continue
            recorder.close()
            (recorder.folder / "real.json").write_text(json.dumps(report.as_dict()) + "\n")
            late, gap = report.lateness_ms, report.gap_ms
            gaps = f"gap {gap.get('median', 0):.3f}/{gap.get('p99', 0):.2f} ms"
            met = f"{100 * report.summary.attainment:.1f} met"
            say(f"{name}: {met}, {gaps}, late {late['median']:.3f}/{late['max']:.2f}, {report.moves} moves")
    say("done")


def run(
    models: list[str],
    out: Path,
    device: str,
    seconds: float,
    options: str,
    cells: int,
    served: list[str],
    pack: Path | None,
) -> None:
    """Serve *models* one after the other, each in its process; all load their libraries at once, at the start."""
    until = time.monotonic() + seconds
    command = [sys.executable, __file__, "one", "--device", device, "--options", options, "--cells", str(cells)]
    command += ["--policies", ",".join(served)]
    processes = {}
    for model in models:
        (out / model).mkdir(parents=True, exist_ok=True)
        log = (out / model / "log.txt").open("w")
        processes[model] = subprocess.Popen(
            [*command, "--out", str(out / model), model],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    left = sum(PLANS[m].share for m in models)
    for model, process in processes.items():  # all of them first: building a model would disturb who is being timed
        while process.poll() is None and not (out / model / "loaded").exists() and time.monotonic() < until - 60:
            time.sleep(0.1)
    print(f"all loaded, {until - time.monotonic():.0f} s left", flush=True)
    for model, process in processes.items():
        allowed = max((until - time.monotonic()) * PLANS[model].share / left, 1.0)
        left -= PLANS[model].share
        try:
            process.communicate(f"{allowed}\n", timeout=allowed + 8.0)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill()
            process.wait()
        print((out / model / "log.txt").read_text()[-2500:], flush=True)
        if pack is not None:
            with tarfile.open(pack / f"{model}.tgz", "w:gz") as tar:
                tar.add(out / model, arcname=model)


# -- anywhere --------------------------------------------------------------------------------------------------


def replay(out: Path) -> None:
    """Simulate each run with the profile taken before it; one line each, then mean and largest gap."""
    from servetwin.core import Request
    from servetwin.profiles import load
    from servetwin.real import KINDS

    gaps = []
    for folder in sorted(out.glob("*/runs/*")):
        if not (folder / "summary.json").exists():
            continue
        meta = json.loads((folder / "meta.json").read_text())
        real = json.loads((folder / "summary.json").read_text())
        records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
        records.sort(key=lambda r: (r["arrival"], r["id"]))
        requests = [Request(r["id"], r["arrival"], r["deadline"] - r["arrival"], r["work"]) for r in records]
        model = meta["model"]
        profile = load(folder.parent.parent / "profiles" / f"{model}.yaml")
        plan = Plan(**meta["plan"])
        twin = simulate(KINDS[model], profile, meta["policy"], plan, meta["factor"], requests)
        gaps.append(100 * (twin.attainment - real["attainment"]))
        print(
            f"{folder.name}: real {real['attainment']:.3f}, simulated {twin.attainment:.3f}, {gaps[-1]:+.2f} points"
        )
    sizes = [abs(g) for g in gaps]
    if sizes:
        mean = sum(sizes) / len(sizes)
        print(f"{len(sizes)} runs: attainment gap mean {mean:.2f}, largest {max(sizes):.2f} points")


def record(out: Path, to: Path, device: str, profiles: Path | None) -> None:
    """Write the runs of each model that came to their end as a recording
    (servetwin.experiments.validation.replay.diffusion), which names the profiles of *device*; and these into the
    folder *profiles*."""
    from servetwin.experiments.validation.replay.diffusion import Recording, recorded_run, write_recording
    from servetwin.real import KINDS

    for folder in sorted(f for f in out.iterdir() if (f / "runs").is_dir()):
        kind, runs, meta = KINDS[folder.name], [], {}
        for run in sorted((folder / "runs").iterdir()):
            if not (run / "summary.json").exists():
                continue
            meta = json.loads((run / "meta.json").read_text())
            lines = (run / "requests.jsonl").read_text().splitlines()
            facts = json.loads((run / "real.json").read_text())
            known = {k: meta[k] for k in ("policy", "load", "rate", "cv", "repeat")}
            whole = meta["policy"] == "clockwork"
            runs.append(
                recorded_run([json.loads(line) for line in lines], loop=kind.loop, whole=whole,
                             slo_factor=meta["factor"], facts=facts, **known)
            )  # fmt: skip
        if not runs:
            continue
        kept = ("options", "versions", "devices", "knee", "plan")
        recording = Recording(
            kind.name, f"{device}/{kind.name}-graphs", kind.chain, kind.placement, meta["plan"]["limit"],
            meta["plan"]["once"], 10.0, {k: meta[k] for k in kept} | {
                "command": "tests/real/diffusion/campaign.py run"},
            runs,
            together=True,
        )  # fmt: skip
        write_recording(recording, to / f"{kind.name}.json.gz")
        print(f"{kind.name}: {len(runs)} runs")
        if profiles is not None:
            text = (folder / "profiles" / f"{kind.name}.yaml").read_text()
            profiles.mkdir(parents=True, exist_ok=True)
            named = text.replace(f"name: measured/{kind.name}\n", f"name: {device}/{kind.name}-graphs\n", 1)
            (profiles / f"{kind.name}-graphs.yaml").write_text(named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "one"):
        runs = commands.add_parser(name)
        runs.add_argument("models", nargs="+", choices=list(PLANS))
        runs.add_argument("--device", default="cuda:0")
        runs.add_argument("--out", type=Path, required=True)
        runs.add_argument("--seconds", type=float, default=600.0, help="in which everything must be done")
        runs.add_argument(
            "--options",
            default="{}",
            help="further options of the server, or those of each model by its name, as JSON",
        )
        runs.add_argument("--cells", type=int, default=len(CELLS), help="how many of the cells are served")
        runs.add_argument(
            "--policies",
            type=lambda text: text.split(","),
            default=list(SERVED),
            help="which are served, in this order: neustream,slack-batch,edf",
        )
        runs.add_argument("--pack", type=Path, help="where to pack what each model left")
    again = commands.add_parser("replay")
    again.add_argument("out", type=Path)
    kept = commands.add_parser("record")
    kept.add_argument("out", type=Path)
    kept.add_argument("to", type=Path)
    kept.add_argument("--name", default="h200", help="by which name the profiles of the device go")
    kept.add_argument("--profiles", type=Path, help="folder into which they are copied")
    given = parser.parse_args()
    if given.command == "run":
        run(
            given.models,
            given.out,
            given.device,
            given.seconds,
            given.options,
            given.cells,
            given.policies,
            given.pack,
        )
    elif given.command == "one":
        options = json.loads(given.options)
        serve_model(given.models[0], given.out, given.device, options, given.cells, given.policies)
    elif given.command == "record":
        record(given.out, given.to, given.name, given.profiles)
    else:
        replay(given.out)


if __name__ == "__main__":
    main()
