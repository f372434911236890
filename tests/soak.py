"""Long trials: damaged files by the thousand, runs of ten million requests, and drawn worlds under all invariants.

    make soak                                               # all of it, many hours
    python tests/soak.py --inputs 2000 --only formats
    python tests/soak.py --requests 1000000 --only memory
    python tests/soak.py --worlds 20000 --only worlds
    python tests/soak.py --faults 10000 --only faults
    python tests/soak.py --mutants 300 --only mutants
    python tests/soak.py --only coverage

A damaged file must end in one line with exit code 2, or in an answer; a run's memory must not grow with its requests
beyond what it says of each; no world may break an invariant; of small changes in the code the tests must notice 85 %.
What fails is told with what makes it again, and the exit code is then 1. The figures are printed as they come, and go
into docs/explanation/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "cases")]

import mutations  # noqa: E402
from by_command import call  # noqa: E402

#: Seconds between two lines of progress.
BETWEEN = 30.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# -- damaged files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A kind of file: what a whole one holds, where it lies, and the command that reads it."""

    text: str
    path: str
    command: tuple[object, ...]
    packed: bool = False


def formats(folder: Path) -> dict[str, Format]:
    """One of each kind, in *folder*, all of which are whole."""
    from servetwin.experiments.registry.catalog import MEASURED, WORKLOADS
    from servetwin.profiles.profile import DATA

    code, _, err = call("run", "dit-s2-256-rtx4090", "--requests", 6, "--out", folder / "run")
    assert code == 0, err
    found = {
        f"run folder, {name}": Format(
            (folder / "run" / name).read_text(), f"run/{name}", ("compare", folder / "run", folder / "run")
        )
        for name in ("meta.json", "summary.json", "requests.jsonl", "batches.jsonl")
    }
    with gzip.open(MEASURED / "h100-quiet/diffusion/dit-s2-256.json.gz") as file:
        steps = json.load(file)
    steps["runs"] = steps["runs"][:1]
    for name in ("arrival", "slo", "steps", "outcome", "finished"):
        steps["runs"][0][name] = steps["runs"][0][name][:6]
    score = ("score", folder / "a.json.gz", "--out", folder / "o.csv", "--seeds", 1, "--jobs", 1)
    found["recording"] = Format(json.dumps(steps), "a.json.gz", score, packed=True)
    names, cells = (line.split(",") for line in (MEASURED / "neustream_ae.csv").read_text().splitlines()[:2])
    few = {"requests": "5", "met": "3", "finished": "4"}
    row = (few.get(name, cell) for name, cell in zip(names, cells, strict=True))
    table = f"{','.join(names)}\n{','.join(row)}\n"
    score = ("score", folder / "t.csv", "--out", folder / "o.csv", "--seeds", 1, "--jobs", 1)
    found["measured table"] = Format(table, "t.csv", score)
    trace = "".join(json.dumps({"arrival": 0.1 * i, "steps": 20 + i}) + "\n" for i in range(6))
    arrivals = json.dumps({"process": "trace", "file": str(folder / "t.jsonl"), "rate": None})
    run = ("run", "dit-s2-256-rtx4090", "--set", f"workload.arrivals={arrivals}", "--set", "workload.requests=null")
    found["trace"] = Format(trace, "t.jsonl", (*run, "--set", "workload.steps.dit={draw: trace}"))
    experiment = (WORKLOADS / "dit-s2-256-rtx4090.yaml").read_text()
    found["experiment file"] = Format(experiment, "e.yaml", ("run", folder / "e.yaml", "--set", "requests=3"))
    profile = (DATA / "h100-quiet/dit-s2-256-graphs.yaml").read_text()
    found["profile"] = Format(profile, "p.yaml", ("profiles", folder / "p.yaml"))
    rows = "workload,policy,rate,cv,slo_factor,seed,requests,met,finished,attainment\nx,edf,1,1,2,0,5,4,5,0.8\n"
    found["sweep table"] = Format(rows, "s.csv", ("compare", folder / "s.csv", folder / "s.csv"))
    sweep = "extends: dit-s2-256-rtx4090\nset: {requests: 3}\ngrid: {policy: [edf], rate: [2, 4]}\n"
    command = ("sweep", folder / "w.yaml", "--out", folder / "w.csv", "--jobs", 1, "--no-cache")
    found["sweep file"] = Format(sweep, "w.yaml", command)
    return found | traces(folder) | recordings(folder)


#: By sample of a trace that comes along, how its requests are served.
SERVED = {
    "diffusion.csv": "{extends: dit-s2-256-rtx4090, workload: {ARRIVALS, steps: {dit: {draw: trace}}}}",
    "katz.json": "{extends: dit-s2-256-rtx4090, workload: {ARRIVALS}}",
    "requests.txt": "{extends: dit-s2-256-rtx4090, workload: {ARRIVALS}}",
    **dict.fromkeys(
        ("azure.csv", "burstgpt.csv", "mooncake.jsonl", "vllm-bench.json"),
        "{extends: opt-13b-a6000, workload: {ARRIVALS, draws: seeded, lengths: {llm: {prompt: {draw: constant, "
        "tokens: 9}, output: {draw: trace}, limit: 64, truncate: true}}}}",
    ),
}
LISTS = {"arrival": [0.0, 0.5, 0.75, 2.0], "steps": [20, 30, 25, 20], "class": ["a", "b", "a", "b"]}
TALKS = [
    {"id": str(n), "conversations": [{"from": w, "value": "some words " * n} for w in ("human", "gpt")]}
    for n in range(1, 4)
]


def traces(folder: Path) -> dict[str, Format]:
    """One of each form of a trace that is not plain JSON lines, and of conversations that become one."""
    from servetwin.experiments.workload import traces as package

    samples = Path(package.__file__).parent / "samples"
    texts = {name: (samples / name).read_text(encoding="utf-8") for name in SERVED}
    served = SERVED | {"lists.json": SERVED["diffusion.csv"]}
    texts["lists.json"] = json.dumps(LISTS)
    found = {}
    for name, text in texts.items():
        size = ", size: 512x512" if name in ("diffusion.csv", "requests.txt") else ""  # of several
        arrivals = f"requests: null, arrivals: {{process: trace, file: {json.dumps(str(folder / name))}{size}}}"
        (folder / f"{name}.yaml").write_text(served[name].replace("ARRIVALS", arrivals), encoding="utf-8")
        found[f"trace, {name}"] = Format(text, name, ("run", folder / f"{name}.yaml"))
    command = ("convert", folder / "talks.json", "--form", "sharegpt", "--characters-per-token", 4, "--delay", 1)
    found["conversations"] = Format(json.dumps(TALKS), "talks.json", (*command, "--out", folder / "o.csv"))
    return found


def recordings(folder: Path) -> dict[str, Format]:
    """One of each kind of recorded runs beside those of diffusion models, with few requests."""
    from servetwin.experiments.registry.catalog import MEASURED

    few = {
        "llm-few.json.gz": "h100/llm-opt-13b.json.gz",
        "runs-few.json.gz": "h200-lengths/runs-opt-13b.json.gz",
        "folders-few.json.gz": "h200-pair/folders-sd15-512.json.gz",
        "external-few.json.gz": "rtx4090/external-llama-3.1-8b.json.gz",
    }
    found = {}
    for name, source in few.items():
        with gzip.open(MEASURED / source) as file:
            content = json.load(file)
        for run in (runs := content.get("runs", [content])[:1]):
            for key, values in run.items():
                if (isinstance(values, list) and len(values) > 100) or key == "outcome":
                    run[key] = values[:6]
            if "summary" in run:  # which counts them
                ends = {"met": "m", "late": "l", "dropped": "d", "failed": "f"}
                run["summary"] |= {"requests": 6, **{name: run["outcome"].count(c) for name, c in ends.items()}}
                run["summary"]["finished"] = run["summary"]["met"] + run["summary"]["late"]
        content = {**content, "runs": runs} if "runs" in content else content
        score = ("score", folder / name, "--out", folder / "o.csv", "--seeds", 1, "--jobs", 1)
        found[f"recording, {name.partition('-')[0]}"] = Format(json.dumps(content), name, score, packed=True)
    return found


def damage(form: Format, draw: random.Random) -> bytes:
    """A damaged file; of JSON a value is another, or gone, of the rest bytes are."""
    if form.text.lstrip()[:1] in ("{", "["):
        data = mutations.mutated(form.text, draw)
    else:
        data = mutations.damaged(form.text.encode(), draw)
    return gzip.compress(data, 1, mtime=0) if form.packed else data


def try_formats(count: int, seed: int, first: int = 0) -> int:
    """Damage each kind of file *count* times, from the input of number *first* on; gives how many were not refused in
    a line, or answered."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="servetwin-soak-") as name:
        folder = Path(name)
        for kind, form in formats(folder).items():
            whole = form.text.encode()
            refused, began, said, own = 0, time.monotonic(), time.monotonic(), 0
            for number in range(first, first + count):
                draw = random.Random(f"{kind} {seed} {number}")
                (folder / form.path).write_bytes(damage(form, draw))
                fault = fault_of(form.command)
                refused += fault is None
                if fault:
                    own += 1
                    say(f"FAILED {kind}: input {number} of seed {seed}: {fault}")
                remove_results(folder)
                if time.monotonic() - said > BETWEEN:
                    said = time.monotonic()
                    say(f"  {kind}: {number + 1 - first} of {count}")
            (folder / form.path).write_bytes(gzip.compress(whole) if form.packed else whole)
            took = time.monotonic() - began
            say(f"{kind}: {count} damaged, {own} neither refused in a line nor answered, {count / took:.0f}/s")
            failed += own
    return failed


def remove_results(folder: Path) -> None:
    """Remove what commands have written: the next one is to begin anew."""
    for name in ("o.csv", "w.csv", "w.csv.spec.yaml", "w.csv.part"):
        (folder / name).unlink(missing_ok=True)


def fault_of(command: tuple[object, ...]) -> str | None:
    """What is wrong with how *command* ended; None if nothing is."""
    try:
        code, out, err = call(*command)
    except Exception as error:  # a traceback, for a user
        return f"{type(error).__name__}: {error}"
    if code not in (0, 2):
        return f"exit code {code}: {err[:200]!r}"
    if code and (out or err.count("\n") != 1):
        return f"{err.count(chr(10))} lines: {err[:200]!r}"
    return None


# -- memory ---------------------------------------------------------------------------------------------

#: A workload, policy and settings for each way in which requests are served.
PATHS: dict[str, tuple[str, list[tuple[str, object]]]] = {
    "image model": ("dit-s2-256-rtx4090", [("policy", "edf"), ("rate", 4.0)]),
    "language model, by numbers": ("opt-13b-h100-async", [("policy", "vllm-v1"), ("rate", 20.0)]),
    "language model, by objects": ("opt-13b-h100-async", [("policy", "andes"), ("rate", 10.0)]),
    "pipeline of language models": ("matplotagent-rtx4090", [("policy", "vllm"), ("rate", 0.2)]),
}

#: Bytes by which the memory may grow with each request: its latencies are kept, for medians and p99.
MOST = 64


def try_memory(requests: int) -> int:
    """Serve so many *requests* in each way, each in a process of its own; gives how many grew by more than `MOST`."""
    failed = 0
    for name in PATHS:
        told = subprocess.run(
            [sys.executable, __file__, "--serve", name, "--requests", str(requests)],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        if told.returncode:
            failed += 1
            say(f"FAILED {name}: exit code {told.returncode}")
            continue
        found = json.loads(told.stdout.splitlines()[-1])
        grown = (found["end"] - found["quarter"]) / (0.75 * requests)
        failed += grown > MOST
        word = "FAILED " if grown > MOST else ""
        first, last = (f"{found[key] / 2**20:.0f} MiB" for key in ("quarter", "end"))
        took = f"{requests} requests in {found['seconds']:.0f} s"
        say(f"{word}{name}: {took}, {first} after a quarter, {last} at the end: {grown:.1f} bytes for each request")
    return failed


def serve(name: str, requests: int) -> None:
    """Serve *requests* of a path, and print what memory that took."""
    from servetwin.experiments.assembly.build import build
    from servetwin.experiments.spec.loading import load

    workload, settings = PATHS[name]
    made = build(load(workload, [*settings, ("requests", requests), ("workload.draws", "seeded")]))
    found: dict[str, float] = {"quarter": 0.0}
    began = time.monotonic()

    def watched(source: Iterator[object]) -> Iterator[object]:
        for number, request in enumerate(source):
            if number % max(requests // 20, 1) == 0:
                sys.stderr.write(f"  {name}: {number} sent, {resident() / 2**20:.0f} MiB\n")
            if number == requests // 4:
                found["quarter"] = resident()
            yield request

    made.source = watched(made.source)  # type: ignore[assignment, arg-type]
    made.play()
    say(json.dumps({**found, "end": resident(), "seconds": time.monotonic() - began}))


def resident() -> float:
    """Bytes of this process in memory."""
    with contextlib.suppress(OSError):
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# -- worlds ---------------------------------------------------------------------------------------------


def try_worlds(count: int, seed: int) -> int:
    """Run *count* drawn worlds under all invariants; gives how many broke one."""
    import hypothesis
    from worlds import World, worlds

    done = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(worlds())
    def every(world: World) -> None:
        nonlocal done
        world.run()
        done += 1

    began = time.monotonic()
    try:
        every()
    except Exception as error:
        say(f"FAILED world after {done}: {type(error).__name__}: {error}")
        return 1
    say(f"worlds: {done} under all invariants, none broken, {done / (time.monotonic() - began):.0f}/s")
    return 0


def try_faults(count: int, seed: int) -> int:
    """The same of *count* worlds in which workers fail, half of them engines."""
    import hypothesis
    from faulty_worlds import FaultyEngines, FaultyWorld, faulty_engines, faulty_worlds

    began = time.monotonic()
    told = {"lost": 0, "failures": 0}
    for worlds, many in ((faulty_worlds(), count - count // 2), (faulty_engines(), count // 2)):
        done = 0

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=max(many, 1),
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(worlds)
        def every(world: FaultyWorld | FaultyEngines) -> None:
            nonlocal done
            ran = world.run()
            faults = (ran.loop if isinstance(world, FaultyWorld) else ran[0]).fleet
            told["lost"] += faults.counts.lost
            told["failures"] += sum(map(len, faults.outages.values()))
            done += 1

        try:
            every()
        except Exception as error:
            errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            for one in errors:  # of each the smallest world that was found
                notes = "\n".join(getattr(one, "__notes__", []))
                say(f"FAILED world with faults after {done}: {type(one).__name__}: {one}\n{notes}")
            return 1
    rate = count / (time.monotonic() - began)
    some = f"{told['failures']} failures, {told['lost']} visits lost"
    say(f"worlds with faults: {count} under all invariants, none broken ({some}), {rate:.0f}/s")
    return 0


def try_mutants(count: int, seed: int) -> int:
    """Change the code *count* times, one change at a time (``tests/mutants.py``); gives 1 if too few are noticed."""
    command = [sys.executable, str(HERE / "mutants.py"), "--count", str(count), "--seed", str(seed)]
    code = subprocess.run(command, check=False).returncode
    return 1 if code else 0


def try_coverage() -> int:
    """Measure which lines and branches the tests take (``tests/covered.py``); gives 1 if too few, else 0."""
    return 1 if subprocess.run([sys.executable, str(HERE / "covered.py")], check=False).returncode else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="damaged files of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them: to try them in slices")
    parser.add_argument("--requests", type=int, default=10_000_000, help="in each way of serving")
    parser.add_argument("--worlds", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=20_000, help="worlds in which workers fail")
    parser.add_argument("--mutants", type=int, default=1000, help="changes in the code that the tests are to notice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["formats", "memory", "worlds", "faults", "mutants", "coverage"])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.requests)
        return 0
    trials: dict[str, Callable[[], int]] = {
        "formats": lambda: try_formats(given.inputs, given.seed, given.first),
        "worlds": lambda: try_worlds(given.worlds, given.seed),
        "faults": lambda: try_faults(given.faults, given.seed),
        "memory": lambda: try_memory(given.requests),
        "coverage": try_coverage,
        "mutants": lambda: try_mutants(given.mutants, given.seed),
    }
    failed = sum(trial() for name, trial in trials.items() if given.only in (None, name))
    say(f"{failed} failed" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("SERVETWIN_CACHE", tempfile.mkdtemp(prefix="servetwin-soak-"))
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(os.environ["SERVETWIN_CACHE"], ignore_errors=True)
