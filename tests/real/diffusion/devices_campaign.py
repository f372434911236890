"""Two GPUs: a profile of each, hand-overs between them, and blind runs behind routers and of stages apart.

::

    devices_campaign.py FOLDER --seconds 560 [--tiny] [--models dit-xl2-256,sd15-512]
    devices_campaign.py record FOLDER    # anywhere: real beside simulated, and what was measured kept in the checkout

Every model has three processes: one for each GPU, which takes its profile (both at once, each by itself before any
run), and one with both, which serves as `servetwin run --backend real --device gpu0=cuda:0 --device gpu1=cuda:1`
does. All of them start at once, and then wait their turn: nothing is built or captured while something is timed. The
process with both GPUs first makes the same images on one, on replicas, and with the stages apart, and measures
hand-overs. A rate is a share of the knee: where the simulation with these profiles meets `AIM` of the requests.

Whatever breaks ends no more than itself. FOLDER gets ``log.txt`` and a ``MODEL.tgz`` for each model, written anew
after each run: profiles, and run folders with ``real.json`` beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Share of requests met that defines the knee.
AIM = 0.95
#: Seconds that a run takes beside the time in which its requests arrive.
EXTRA = 3.5
#: Seconds in which everything must have been loaded; and what is kept for packing at the end.
LOADING, PACKING = 150.0, 4.0
#: Requests whose images are compared.
IMAGES = 6
NAMES = ("gpu0", "gpu1")
#: What serves to plan with if no profile could be taken.
SHIPPED = {
    "dit-xl2-256": "h200/dit-xl2-256-graphs",
    "sd15-512": "h200-again/sd15-512-graphs",
    "tiny-dit": "cpu/tiny-dit",
    "tiny-sd": "cpu/tiny-sd",
}
#: A router that does not come along.
OWN = Path(__file__).parent / "fewest_before.py"


@dataclass(frozen=True)
class Plan:
    """What is served of a model: batches of up to *limit* (*once*, where a module has no loop), requests that ask for
    *low* to *high* steps and may take *factor* times as long as alone, *requests* of them at least and for *lasts*
    seconds. *apart* are the groups of modules by device when stages are apart. *seconds* is spent on each point of a
    profile, *share* the model's part of the time.
    """

    limit: int
    low: int
    high: int
    apart: dict[str, list[list[str]]]
    once: int = 4
    factor: float = 4.0
    requests: int = 300
    lasts: float = 10.5
    seconds: float = 0.2
    share: float = 1.0


PLANS = {
    "dit-xl2-256": Plan(8, 30, 50, {"gpu0": [["dit"]], "gpu1": [["vae"]]}, share=0.85),
    "sd15-512": Plan(
        6, 15, 25, {"gpu0": [["clip"], ["vae", "safety"]], "gpu1": [["unet"]]}, factor=5.0, lasts=20.0, seconds=0.15
    ),
    "tiny-dit": Plan(
        3, 30, 40, {"gpu0": [["dit"]], "gpu1": [["vae"]]}, 2, requests=24, lasts=1.0, seconds=0.05, share=0.85
    ),
    "tiny-sd": Plan(
        3, 10, 14, {"gpu0": [["clip"], ["vae", "safety"]], "gpu1": [["unet"]]}, 2, 5.0, 24, lasts=1.0, seconds=0.05
    ),
}

#: (deployment, router, policy, share of the knee, cv of the gaps between arrivals), what matters most first.
CELLS: dict[str, tuple[tuple[str, str, str, float, float], ...]] = {
    "dit": (
        ("pair", "least_loaded", "neustream", 1.0, 1.0),
        ("pair", "round_robin", "neustream", 1.0, 1.0),
        ("apart", "round_robin", "neustream", 1.0, 1.0),
        ("pair", "power_of_two", "edf", 1.0, 1.0),
        ("pair", "own", "slack-batch", 1.15, 1.0),
        ("pair", "least_loaded", "edf", 0.85, 1.0),
        ("pair", "power_of_two", "neustream", 1.15, 1.0),
        ("pair", "own", "neustream", 1.0, 2.0),
        ("apart", "round_robin", "edf", 1.15, 1.0),
        ("pair", "round_robin", "edf", 1.0, 1.0),
        ("pair", "least_loaded", "slack-batch", 1.0, 1.0),
        ("pair", "round_robin", "neustream", 1.15, 1.0),
    ),
    "sd": (
        ("pair", "least_loaded", "neustream", 1.0, 1.0),
        ("pair", "round_robin", "edf", 1.0, 1.0),
        ("apart", "round_robin", "neustream", 1.0, 1.0),
        ("pair", "own", "neustream", 1.15, 1.0),
        ("pair", "power_of_two", "slack-batch", 0.85, 1.0),
        ("pair", "least_loaded", "edf", 1.15, 1.0),
        ("pair", "round_robin", "neustream", 0.85, 1.0),
    ),
}


# -- an experiment, in either world ----------------------------------------------------------------


def groups_of(kind: Any, plan: Plan, deployment: str) -> dict[str, list[list[str]]]:
    """The groups of modules that have a worker each, by device."""
    return plan.apart if deployment == "apart" else dict.fromkeys(NAMES, kind.placement)


def experiment_of(
    kind: Any, cell: tuple[str, str, str, float, float], rate: float, profiles: Sequence[Path], requests: int = 0
) -> dict[str, Any]:
    """The content of an experiment file. Runs with the same rate and cv send the same requests."""
    plan = PLANS[kind.name]
    deployment, router, policy, share, cv = cell
    workers = [
        {"modules": group, "device": device, "limit": plan.limit if group == [kind.loop] else plan.once}
        for device, groups in groups_of(kind, plan, deployment).items()
        for group in groups
    ]
    return {
        "name": f"{kind.name}-{deployment}",
        "pipeline": {"modules": {m: ({"loop": True} if m == kind.loop else {}) for m in kind.modules}},
        "workload": {
            "requests": requests or max(plan.requests, round(plan.lasts * rate)),
            "arrivals": {"process": "gamma", "rate": round(rate, 3), "cv": cv},
            "steps": {kind.loop: {"draw": "uniform", "low": plan.low, "high": plan.high}},
        },
        "slo": {"factor": plan.factor},
        "policy": {"name": policy},
        "deployment": {
            "devices": {name: str(path) for name, path in zip(NAMES, profiles, strict=True)},
            "estimates": "scheduler",
            "workers": workers,
            "router": str(OWN) if router == "own" else router,
        },
        "system": {"stop_after": 10.0},
        "time": {"unmeasured": "shared"},  # if a profile that comes along has to do
        "seed": 100 + round(100 * share) + round(10 * cv),
    }


def knee(kind: Any, deployment: str, profiles: Sequence[Path]) -> float:
    """The rate at which the simulation meets `AIM` of the requests under NeuStream, behind `least_loaded`."""
    from servetwin.experiments.assembly import build
    from servetwin.experiments.spec.loading import load
    from servetwin.profiles import load as load_profile

    plan = PLANS[kind.name]
    table = load_profile(str(profiles[0])).table(kind.loop, "measured")
    looped = sum([kind.loop] in groups for groups in groups_of(kind, plan, deployment).values())
    high = looped * max(n / table(n) for n in range(1, plan.limit + 1)) / ((plan.low + plan.high) / 2)
    low = 0.1 * high
    for _ in range(7):
        middle = (low + high) / 2
        cell = (deployment, "least_loaded", "neustream", 1.0, 1.0)
        experiment = load(experiment_of(kind, cell, middle, profiles, requests=plan.requests))
        low, high = (middle, high) if build.run(experiment).attainment >= AIM else (low, middle)
    return (low + high) / 2


# -- the processes ---------------------------------------------------------------------------------


class Part:
    """A process of the campaign: it says what it does, and a failure ends no more than what failed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = args.began
        self.args = args
        self.what = f"{args.model} {args.part}"
        self.out: Path = args.out

    def say(self, *words: object) -> None:
        print(f"{time.time() - self.began:7.1f} {self.what}: " + " ".join(map(str, words)), flush=True)

    def safely(self, what: Callable[..., Any], *args: Any) -> Any:
        """What goes wrong in one part must not end the others."""
        try:
            return what(*args)
        except Exception:
            self.say("FAILED", getattr(what, "__name__", what), traceback.format_exc()[-2000:])

    def turn(self) -> float:
        """Say that everything is loaded, and wait; until when (seconds since the epoch) there is time then."""
        self.say("loaded")
        (self.out / f"loaded-{self.args.part}").touch()
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(1)
        return float(line)


def profile_one(part: Part) -> None:
    """The profile of one GPU, which is the only one that this process sees."""
    from servetwin.experiments.registry import policy_registry
    from servetwin.real import KINDS, Options, Server
    from servetwin.real.diffusion.profiling.profile_writer import as_profile, write_profile
    from servetwin.real.diffusion.profiling.profiler import Profiler

    name, plan, kind = part.args.part, PLANS[part.args.model], KINDS[part.args.model]
    # Two threads that never sleep, each looking for an undisturbed core, must not find the same one.
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if half:
        os.sched_setaffinity(0, cores[:half] if name == NAMES[0] else cores[half:])
    device = "cpu" if part.args.tiny else "cuda:0"
    server = Server(kind, Options(device=device))
    slots = server.device_slots("gpu0")
    for module in kind.modules:
        slots.warm(module, plan.limit if module == kind.loop else plan.once)
    part.turn()
    params = {"neustream": {"bound": plan.limit}, "edf": {}, "slack-batch": {}}
    find, make = policy_registry.find_policy, policy_registry.make
    profiler = Profiler(
        server,
        limit=plan.limit,
        once=plan.once,
        seconds=plan.seconds,
        whole_steps=(plan.low, plan.high),
        # A profile knows policies by the names of their classes.
        policies={find(p).__name__.lower(): lambda p=p: make(p, params[p]) for p in params},  # type: ignore[misc]
    )
    measured = profiler.take(brief=True)
    part.say("took", json.dumps(profiler.took))
    where = "cpu-pair" if part.args.tiny else "h200-pair"
    command = "tests/real/diffusion/devices_campaign.py"
    content = as_profile(profiler, measured, f"{where}/{kind.name}-{name}", command)
    path = part.out / "profiles" / f"{kind.name}-{name}.yaml"
    path.with_suffix(".raw.json").write_text(json.dumps(content))  # a profile may be refused
    write_profile(content, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


class Serving(Part):
    """The process that has both GPUs."""

    def load(self) -> None:
        """Build and capture everything; the images, and the hand-overs."""
        from servetwin.experiments.backends.diffusion import Backend, Setup
        from servetwin.real import KINDS

        self.kind, self.plan = KINDS[self.args.model], PLANS[self.args.model]
        self.ways: dict[str, list[float]] = {}
        torch_names = ("cpu", "cpu") if self.args.tiny else ("cuda:0", "cuda:1")
        devices = dict(zip(NAMES, torch_names, strict=True))
        asked = tuple(f"{name}={device}" for name, device in devices.items())
        self.backend = Backend(Setup(devices=asked, model=self.kind.name, slots=1024))
        self.server = self.backend._server(self.kind, devices, 1024)
        for name in NAMES:
            self.server.device_slots(name)
        self.safely(self.images)
        self.safely(self.hand_overs)

    def images(self) -> None:
        """The same requests on one GPU, on each of the replicas in turn, and with the stages apart."""
        import torch
        from servetwin.core import BatchWorker, Request, WorkerView
        from servetwin.policies.diffusion.edf import EDF

        def made(groups: dict[str, list[list[str]]]) -> dict[int, torch.Tensor]:
            found: dict[int, torch.Tensor] = {}
            placed = [(device, tuple(group)) for device, some in groups.items() for group in some]
            by = {s.modules: s for s in self.kind.pipeline().stages(list(dict.fromkeys(g for _, g in placed)))}
            workers = []
            for device, group in placed:
                limit = self.plan.limit if group == (self.kind.loop,) else self.plan.once
                name = f"{'+'.join(group)}@{device}"
                view = WorkerView(by[group], lambda m, n: 0.001, limit=limit, slo_factor=9.0, name=name)
                workers.append(BatchWorker(by[group], EDF(), view, device=device))
            order = [s for module in self.kind.modules for s in by.values() if s.modules[0] == module]
            requests = [Request(i, 0.03 * i, 600.0, {self.kind.loop: 8 + i}) for i in range(IMAGES)]
            report = self.server.serve(
                order,
                workers,
                requests,
                sink=lambda number, image: found.setdefault(number, image.int()),
                router=lambda request, there, now: there[request.id % len(there)],
            )
            self.say("images", sorted(groups), json.dumps(report.hand_overs))
            return found

        alone = made({"gpu0": self.kind.placement})
        again = made({"gpu0": self.kind.placement})
        for name, groups in (
            ("gpu0 again", None),
            ("gpu1", {"gpu1": self.kind.placement}),
            ("pair", dict.fromkeys(NAMES, self.kind.placement)),
            ("apart", self.plan.apart),
        ):
            other = again if groups is None else made(groups)
            off = [int((other[i] - alone[i]).abs().max()) for i in range(IMAGES)]
            differ = [round(float((other[i] != alone[i]).float().mean()), 5) for i in range(IMAGES)]
            self.say(f"images of {name} beside gpu0's: off by at most {max(off)} of 255; pixels that differ {differ}")

    def hand_overs(self) -> None:
        """How long a request is on its way from each GPU to the other."""
        from servetwin.real.diffusion.profiling.hand_overs import measured_hand_overs

        for source, target in (NAMES, NAMES[::-1]):
            found = self.ways[target] = measured_hand_overs(self.server, source, target)
            middle = sorted(found)[len(found) // 2]
            self.say(f"hand-over {source} to {target}: median {1e3 * middle:.3f} ms, max {1e3 * max(found):.3f}")

    def profiles(self) -> list[Path]:
        """The profiles of both GPUs with what hand-overs take; says how far they differ."""
        from servetwin.profiles import load
        from servetwin.real.diffusion.profiling.hand_overs import with_hand_overs
        from servetwin.real.diffusion.profiling.profile_writer import write_profile

        found = []
        for name in NAMES:
            path = self.out / "profiles" / f"{self.kind.name}-{name}.yaml"
            content = self.taken(path)
            how = "from the other device, both idle, one at a time"
            write_profile(with_hand_overs(content, self.ways[name], how), path)
            found.append(path)
        tables = [load(str(path)).table(self.kind.loop, "measured") for path in found]
        ratios = [round(tables[1](n) / tables[0](n), 4) for n in range(1, self.plan.limit + 1)]
        self.say("iterations on gpu1 over gpu0, by batch:", ratios)
        return found

    def taken(self, path: Path) -> dict[str, Any]:
        """The content of a GPU's profile; where there is none, of the other's, or of one that comes along."""
        import yaml
        from servetwin.profiles.profile import DATA

        others = sorted(path.parent.glob(f"{self.kind.name}-gpu?.yaml"))
        source = path if path.exists() else others[0] if others else DATA / f"{SHIPPED[self.kind.name]}.yaml"
        if source != path:
            self.say(f"NO PROFILE for {path.stem}; instead {source}")
        content: dict[str, Any] = yaml.safe_load(source.read_text())
        return {**content, "name": f"{'cpu' if self.args.tiny else 'h200'}-pair/{path.stem}"}

    def runs(self, until: float) -> None:
        """As many of the runs as there is time for."""
        import yaml
        from servetwin.experiments.spec.loading import load

        profiles = self.profiles()
        knees: dict[str, float] = {}
        for number, cell in enumerate(CELLS["dit" if "dit" in self.kind.name else "sd"][: self.args.cells]):
            deployment, router, policy, share, cv = cell
            if deployment not in knees:
                knees[deployment] = knee(self.kind, deployment, profiles)
                self.say(f"knee of {deployment} at {knees[deployment]:.2f} requests/s")
            content = experiment_of(self.kind, cell, share * knees[deployment], profiles)
            name = f"{number:02d}-{deployment}-{router}-{policy}-{share:g}-cv{cv:g}"
            sent = content["workload"]
            need = sent["requests"] / sent["arrivals"]["rate"] * (1.15 if cv > 1 else 1.05) + EXTRA
            if time.time() + need > until:
                self.say(f"no time for {name}, which takes {need:.0f} s")
                continue
            file = self.out / "experiments" / f"{name}.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(yaml.safe_dump(content, sort_keys=False))
            report = self.safely(self.backend.run, load(str(file)), self.out / "runs" / name)
            if report is not None:
                late, gap = report.lateness_ms, report.gap_ms
                what = f"{100 * report.summary.attainment:.1f} met of {report.summary.requests}"
                gaps = f"gap {gap.get('median', 0):.3f}/{gap.get('p99', 0):.2f} ms, late {late['median']:.3f}"
                self.say(f"{name}: {what}, {gaps}, {report.moves} moves {json.dumps(report.hand_overs)}")
            self.safely(self.pack)
        self.say("done")

    def pack(self) -> None:
        """What there is, in one file of the folder that comes back."""
        pack(self.out, self.args.folder / f"{self.kind.name}.tgz")


def pack(out: Path, to: Path) -> None:
    """Leave in the file *to* what the processes of a model have made."""
    made = to.with_name(f".{to.name}")
    with tarfile.open(made, "w:gz", compresslevel=3) as tar:
        for name in ("profiles", "experiments", "runs"):
            if (out / name).exists():
                tar.add(out / name, arcname=f"{to.stem}/{name}")
    made.replace(to)


def serve_both(part: Serving) -> None:
    part.load()
    until = part.turn()
    part.safely(part.runs, until)


# -- the campaign ----------------------------------------------------------------------------------


class Campaign:
    """Starts the processes and gives each its turn."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.time()
        self.until = self.began + args.seconds - PACKING
        self.args = args
        self.folder: Path = args.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="devices-"))
        self.processes: dict[tuple[str, str], subprocess.Popen[str]] = {}
        self.logged: dict[Path, int] = {}

    def say(self, text: str) -> None:
        self.gather()
        self.log(f"{time.time() - self.began:7.1f} {text}\n")

    def log(self, text: str) -> None:
        print(text, end="", flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(text)

    def gather(self) -> None:
        """Add what the processes have said to the log."""
        for path in sorted(self.work.glob("*/log-*.txt")):
            with path.open() as file:
                file.seek(self.logged.get(path, 0))
                text = file.read()
                self.logged[path] = file.tell()
            if text:
                self.log(text)

    def start(self, model: str, part: str) -> None:
        out = self.work / model
        (out / "profiles").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).resolve()), "part", str(self.folder), "--part", part]
        command += ["--model", model, "--out", str(out), "--began", str(self.began), "--cells", str(self.args.cells)]
        env = dict(os.environ)
        if self.args.tiny:
            command.append("--tiny")
        elif part in NAMES:
            env["CUDA_VISIBLE_DEVICES"] = str(NAMES.index(part))
        log = (out / f"log-{part}.txt").open("w")
        self.processes[model, part] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True, env=env
        )

    def await_loaded(self) -> None:
        limit = min(time.time() + self.args.loading, self.until)
        waiting = set(self.processes)
        while waiting and time.time() < limit:
            waiting = {
                (model, part)
                for model, part in waiting
                if self.processes[model, part].poll() is None and not (self.work / model / f"loaded-{part}").exists()
            }
            time.sleep(0.1)
        late = f"; not yet: {sorted(waiting)}" if waiting else ""
        self.say(f"loaded; {self.until - time.time():.0f} s left{late}")

    def let(self, model: str, parts: Sequence[str], until: float) -> None:
        """Give these processes of *model* their turn at once, until they are through or *until*."""
        for part in parts:
            with contextlib.suppress(OSError):
                pipe = self.processes[model, part].stdin
                assert pipe is not None
                pipe.write(f"{until}\n")
                pipe.close()
        for part in parts:
            process = self.processes[model, part]
            try:
                process.wait(max(until + 2.0 - time.time(), 0.1))
            except subprocess.TimeoutExpired:
                self.say(f"{model} {part} takes too long")
                process.kill()
                process.wait()
        self.gather()

    def run(self) -> None:
        models = self.args.models
        try:
            self.say(f"at {time.strftime('%H:%M:%S')}")
            for model in models:
                for part in (*NAMES, "both"):
                    self.start(model, part)
            self.await_loaded()
            left = sum(PLANS[m].share for m in models)
            for model in models:
                share = (self.until - time.time()) * PLANS[model].share / left
                left -= PLANS[model].share
                until = time.time() + share
                self.let(model, NAMES, min(until, time.time() + self.args.profiling))
                self.say(f"{model} is profiled; {until - time.time():.0f} s left for it")
                self.let(model, ["both"], until)
            self.say("over")
        finally:
            for process in self.processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self.gather()
            for model in models:  # whatever there is of one whose last process did not come so far
                if not (self.folder / f"{model}.tgz").exists() and (self.work / model).exists():
                    pack(self.work / model, self.folder / f"{model}.tgz")
            shutil.rmtree(self.work, ignore_errors=True)


# -- anywhere --------------------------------------------------------------------------------------


def recorded(folder: Path, to: Path, profiles: Path) -> list[Path]:
    """Pack what is in *folder*'s MODEL.tgz as recordings in *to*, and leave the profiles in *profiles*."""
    from servetwin.experiments.validation.replay import packed_runs

    made = []
    for packed in sorted(folder.glob("*.tgz")):
        with tempfile.TemporaryDirectory() as work:
            with tarfile.open(packed) as tar:
                tar.extractall(work, filter="data")
            here = Path(work) / packed.stem
            shutil.copy(OWN, here)
            out = to / f"folders-{packed.stem}.json.gz"
            for name in packed_runs.pack(here, out):
                print(f"{packed.stem} {name}: did not come to its end")
            profiles.mkdir(parents=True, exist_ok=True)
            for path in (here / "profiles").glob("*.yaml"):
                shutil.copy(path, profiles)
            made.append(out)
    return made


def replay(folder: Path, to: Path, profiles: Path) -> None:
    """Keep the runs as `recorded` does and simulate each, with ten seeds of the noise; one line each."""
    from servetwin.experiments.validation.score import SEEDS, score

    every = []
    for path in recorded(folder, to, profiles):
        scored = score(path, seeds=SEEDS, jobs=1)
        for s in scored:
            real = 100 * s.run.met / s.run.requests
            print(f"{path.stem} {s.run.cells['folder']}: real {real:.1f}, gap {s.gap_met:+.2f} points")
        gaps = [abs(s.gap_met) for s in scored]
        print(f"{path.stem}: {len(gaps)} runs: mean {sum(gaps) / len(gaps):.2f}, largest {max(gaps):.2f}")
        every += gaps
    if every:
        print(
            f"{len(every)} runs: attainment gap mean {sum(every) / len(every):.2f}, largest {max(every):.2f} points"
        )


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    root, kept = Path(__file__).parents[3], "h200-pair"
    if argv[:1] == ["record"]:
        replay(Path(argv[1]), root / "experiments" / "measured" / kept, root / "profiles" / "data" / kept)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if argv[:1] == ["part"]:
        parser.add_argument("command")
        parser.add_argument("--part", required=True)
        parser.add_argument("--model", required=True)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--began", type=float, required=True)
    else:
        parser.add_argument("--seconds", type=float, required=True, help="in which everything must be done")
        parser.add_argument("--models", type=lambda text: text.split(","), help="what is served, in this order")
        parser.add_argument("--loading", type=float, default=LOADING, help="seconds in which all must be loaded")
        parser.add_argument("--profiling", type=float, default=110.0, help="seconds that a profile may take")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=99, help="how many of the runs of a model, the first ones")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU, which stands for both GPUs")
    args = parser.parse_args(argv)
    if hasattr(args, "part"):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if args.tiny:
            import torch

            torch.set_num_threads(1)
        if args.part in NAMES:
            profile_one(Part(args))
        else:
            serve_both(Serving(args))
        sys.stdout.flush()
        os._exit(0)  # what torch does at the end of a process takes time
    args.models = args.models or (["tiny-dit", "tiny-sd"] if args.tiny else ["dit-xl2-256", "sd15-512"])
    Campaign(args).run()


if __name__ == "__main__":
    main()
