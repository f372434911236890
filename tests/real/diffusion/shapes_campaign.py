"""Validation runs with requests of three sizes: a profile of a model at all of them, predictions, then runs.

    python tests/real/diffusion/shapes_campaign.py run --device cuda:0 --out DIR --seconds 570 [--pack $OUT] MODEL ...
    python tests/real/diffusion/shapes_campaign.py replay DIR          # anywhere: real beside predicted

Everything is done by what users have: `measure`, experiments, `Backend`. The profile is taken once, before the runs,
and what the simulation makes of each planned run is written down (``predicted.json``) before the first of them. The
knee is where it meets `AIM` of the requests under NeuStream; loads are multiples of that rate. Who runs it again with
the same DIR goes on where it stood: a profile that is there is used, runs that have ended are not made again;
``--only`` names those to be made.
`servetwin score DIR/MODEL/runs` then simulates each run from the arrivals that it really had; runs name their profile
by its whole path, so they are unpacked to the same DIR.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Share of requests met that defines the knee, and the loads around it, the most telling first.
AIM = 0.95
LOADS = (1.0, 1.3, 0.8)
POLICIES = ("neustream", "clockwork", "edf")
#: One more, that no run has been made with; what serves is a copy of it beside the runs, which are packed with it.
NEW = Path(__file__).with_name("most_per_second.py")
#: How often the profile is tried: what is measured beside something else is at times refused as that of none.
TRIES = 2
#: Seconds that a run takes beside the time in which its requests arrive.
EXTRA = 6.0


@dataclass(frozen=True)
class Plan:
    """Requests of a model: of *sizes* (the first is the model's own), as often as *weights* say; of *steps* steps at
    the fewest and the most, in batches of up to *limit*. They may take *factor* times as long as alone."""

    sizes: tuple[str, ...]
    weights: tuple[int, ...]
    steps: tuple[int, int]
    limit: int
    requests: int = 300
    factor: float = 4.0
    seconds: float = 0.15  # of measuring each point of the profile


PLANS = {
    "sdxl-1024": Plan(("1024x1024", "512x512", "768x768"), (1, 4, 2), (4, 8), 4),
    "flux1-dev-1024": Plan(("1024x1024", "512x512", "768x768"), (1, 4, 2), (2, 4), 2),
    "tiny-sdxl": Plan(("16x16", "24x24", "32x16"), (1, 4, 2), (3, 5), 2, requests=12, factor=8.0, seconds=0.02),
    "tiny-flux": Plan(("16x16", "24x24", "32x16"), (1, 4, 2), (3, 5), 2, requests=12, factor=8.0, seconds=0.02),
}


def experiment(model: str, profile: Path, policy: str, rate: float) -> Any:
    """Requests at that *rate*: one worker serves all modules, so that nothing else is on the device."""
    from servetwin.experiments.spec.loading import load
    from servetwin.real import KINDS

    plan, kind = PLANS[model], KINDS[model]
    low, high = plan.steps
    modules = {name: {"loop": True} if loops else {} for name, loops in kind.chain}
    return load(
        {
            "name": model,
            "pipeline": {"modules": modules},
            "workload": {
                "requests": plan.requests,
                "arrivals": {"process": "poisson", "rate": rate},
                "steps": {kind.loop: {"draw": "uniform", "low": low, "high": high}},
                "shape": {"draw": "choice", "values": list(plan.sizes), "weights": list(plan.weights)},
            },
            "slo": {"factor": plan.factor},
            "policy": {"name": policy},
            "deployment": {
                "devices": {"gpu0": str(profile)},
                "workers": [{"modules": list(modules), "device": "gpu0", "limit": plan.limit}],
            },
        }
    )


def predicted(model: str, profile: Path, policy: str, rate: float) -> float:
    """The attainment in simulation."""
    from servetwin.experiments.assembly.build import run

    return run(experiment(model, profile, policy, rate)).attainment


def knee(model: str, profile: Path) -> float:
    """The rate at which the simulation meets `AIM` of the requests under NeuStream."""
    low, high = 1e-3, 1e3
    for _ in range(24):
        middle = (low * high) ** 0.5
        if predicted(model, profile, "neustream", middle) >= AIM:
            low = middle
        else:
            high = middle
    return low


def serve(model: str, out: Path, device: str, until: float, only: list[str]) -> None:
    """Profile *model* unless that was done, predict, and make the runs that are left, as far as the time goes: all,
    or *only* some."""
    from servetwin.core import ServeTwinError
    from servetwin.experiments.backends.diffusion import Backend, Setup
    from servetwin.experiments.backends.profile import measure
    from servetwin.experiments.spec.shapes import parsed

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}] {model}: {text}", flush=True)

    plan, profile = PLANS[model], out / "profile.yaml"
    if not profile.exists():
        shapes = [parsed(size, "sizes") for size in plan.sizes[1:]]
        for left in reversed(range(TRIES)):
            try:
                measure(
                    model, profile, Setup((device,), compile="none"), name=f"measured/{model}", limit=plan.limit,
                    seconds=plan.seconds, brief=True, shapes=shapes,
                )  # fmt: skip
                break
            except ServeTwinError as problem:
                say(str(problem))
                if not left:
                    return
        gc.collect()  # the model that was measured
        say("profile taken")
    new = out / NEW.name
    shutil.copy(NEW, new)
    plans = out / "predicted.json"
    if not plans.exists():
        rate = knee(model, profile)
        cells = [
            {"load": load, "rate": load * rate, "policy": policy, "run": f"{Path(policy).stem}-{load:g}"}
            for load in LOADS
            for policy in (*POLICIES, str(new))
        ]
        for cell in cells:
            cell["attainment"] = predicted(model, profile, str(cell["policy"]), float(cell["rate"]))
        plans.write_text(json.dumps(cells, indent=1))
        say(f"knee at {rate:.3g} requests/s")
    backend = Backend(Setup((device,)))
    for cell in json.loads(plans.read_text()):
        folder = out / "runs" / cell["run"]
        if (folder / "summary.json").exists() or (only and cell["run"] not in only):
            continue
        shutil.rmtree(folder, ignore_errors=True)  # cut off
        if time.monotonic() + plan.requests / cell["rate"] + EXTRA > until:
            say(f"no time for {cell['run']}")
            continue
        try:
            report = backend.run(experiment(model, profile, cell["policy"], cell["rate"]), folder, say)
        except ServeTwinError as problem:
            say(f"{cell['run']}: {problem}")
            continue
        found, gap = report.summary.attainment, report.gap_ms
        say(
            f"{cell['run']}: {100 * found:.1f} met, {100 * cell['attainment']:.1f} predicted, "
            f"gap {gap.get('median', 0):.3f}/{gap.get('p99', 0):.2f} ms"
        )
    say("done")


def run(models: list[str], out: Path, device: str, seconds: float, pack: Path | None, only: list[str]) -> None:
    """Each model in a process of its own, one after the other; what it left is packed."""
    until = time.monotonic() + seconds
    for model in models:
        (out / model).mkdir(parents=True, exist_ok=True)
        left = until - time.monotonic() - 10.0  # for packing
        command = [
            sys.executable,
            __file__,
            "one",
            "--device",
            device,
            "--out",
            str(out),
            "--seconds",
            str(left),
            "--only",
            ",".join(only),
            model,
        ]
        try:
            subprocess.run(command, timeout=max(left + 5.0, 1.0), check=False)
        except subprocess.TimeoutExpired:
            print(f"{model}: cut off", flush=True)
        if pack is not None:
            with tarfile.open(pack / f"{model}.tgz", "w:gz") as tar:
                tar.add(out / model, arcname=model)


def replay(out: Path) -> None:
    """A line for each run, then mean and largest gap."""
    gaps = []
    for plans in sorted(out.glob("*/predicted.json")):
        for cell in json.loads(plans.read_text()):
            path = plans.parent / "runs" / cell["run"] / "summary.json"
            if not path.exists():
                continue
            real = json.loads(path.read_text())["attainment"]
            gaps.append(100 * (cell["attainment"] - real))
            name = f"{plans.parent.name}-{cell['run']}"
            print(f"{name}: real {real:.3f}, predicted {cell['attainment']:.3f}, {gaps[-1]:+.2f} points")
    if gaps:
        sizes = [abs(gap) for gap in gaps]
        print(f"{len(gaps)} runs: attainment gap mean {sum(sizes) / len(sizes):.2f}, largest {max(sizes):.2f} points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "one"):
        runs = commands.add_parser(name)
        runs.add_argument("models", nargs="+", choices=list(PLANS))
        runs.add_argument("--device", default="cuda:0")
        runs.add_argument("--out", type=Path, required=True)
        runs.add_argument("--seconds", type=float, default=570.0, help="in which everything must be done")
        runs.add_argument("--only", default="", help="runs by name: neustream-0.8,edf-0.8 (default: all)")
        runs.add_argument("--pack", type=Path, help="where to pack what each model left")
    commands.add_parser("replay").add_argument("out", type=Path)
    given = parser.parse_args()
    only = [name for name in getattr(given, "only", "").split(",") if name]
    if given.command == "run":
        run(given.models, given.out, given.device, given.seconds, given.pack, only)
    elif given.command == "one":
        (model,) = given.models
        serve(model, given.out / model, given.device, time.monotonic() + given.seconds, only)
    else:
        replay(given.out)


if __name__ == "__main__":
    main()
