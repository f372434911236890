"""Validation runs: take each model's profile, serve it under each policy below, at and above its knee, and replay.

    python tests/real/campaign.py run --device cuda:0 --out DIR MODEL ...       # on the device
    python tests/real/campaign.py replay DIR                                    # anywhere: real beside simulated

Every run leaves a run folder with ``real.json`` beside it; the profile is taken before them and never changed after.
Loads are shares of what the loop holds at its best batch size by that profile. A run that breaks does not end the
rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from servetwin.core import Request, RunFolder, ServeTwinError
from servetwin.profiles import load
from servetwin.real import KINDS, Options, Server
from servetwin.real.profiler import take_profile, write_profile
from twin import POLICIES, Twin

LOADS = (0.6, 0.9, 1.15)
SERVED = ("neustream", "clockwork", "edf")


def run(models: list[str], device: str, out: Path, requests: int, steps: tuple[int, int], repeats: int) -> None:
    """Profile and serve *models*; *steps* are the fewest and the most that a request asks for."""
    for model in models:
        began = time.monotonic()
        server = Server(model, Options(device=device))
        path = out / "profiles" / f"{model}.yaml"
        name = f"measured/{model}"
        policies = {
            p: lambda p=p: POLICIES[p](**({"bound": 4} if p == "neustream" else {})) for p in ("neustream", "edf")
        }
        write_profile(
            take_profile(server, name, policies=policies, command=" ".join(["campaign.py", *sys.argv[1:]])), path
        )
        print(f"{model}: profile after {time.monotonic() - began:.0f} s", flush=True)
        twin = Twin(server, load(path), KINDS[model].largest, steps)
        for repeat in range(repeats):
            for share in LOADS:
                for policy in SERVED:
                    folder = out / "runs" / f"{model}-{policy}-{share:g}-{repeat}"
                    due = twin.arrivals(share, requests, seed=repeat)
                    meta = {**server.describe(), "model": model, "policy": policy, "load": share, "seed": repeat}
                    recorder = RunFolder(folder, {**meta, "steps": steps, "profile": path.name})
                    try:
                        report = twin.serve(policy, due, recorder, stop_after=30.0)
                    except ServeTwinError as problem:
                        recorder.close(complete=False)
                        print(f"{folder.name}: {problem}", flush=True)
                        continue
                    recorder.close()
                    (folder / "real.json").write_text(json.dumps(report.as_dict()) + "\n")
                    gap = report.gap_ms.get("median", float("nan"))
                    print(f"{folder.name}: {report.summary.attainment:.3f} met, gap {gap:.3f} ms", flush=True)


def replay(out: Path) -> None:
    """Simulate each run with the profile taken before it; one line each, then mean and largest gap."""
    gaps = []
    for folder in sorted((out / "runs").iterdir()):
        if not (folder / "summary.json").exists():
            continue
        meta = json.loads((folder / "meta.json").read_text())
        real = json.loads((folder / "summary.json").read_text())
        records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
        records.sort(key=lambda r: (r["arrival"], r["id"]))
        requests = [Request(r["id"], r["arrival"], r["deadline"] - r["arrival"], r["work"]) for r in records]
        model = meta["model"]
        twin = Twin(None, load(out / "profiles" / meta["profile"]), KINDS[model].largest, meta["steps"], KINDS[model])
        simulated = twin.simulate(meta["policy"], requests, stop_after=30.0)
        gaps.append(100 * (simulated.attainment - real["attainment"]))
        pair = f"real {real['attainment']:.3f}, simulated {simulated.attainment:.3f}"
        print(f"{folder.name}: {pair}, {gaps[-1]:+.2f} points")
    sizes = [abs(g) for g in gaps]
    if sizes:
        mean = sum(sizes) / len(sizes)
        print(f"{len(sizes)} runs: attainment gap mean {mean:.2f}, largest {max(sizes):.2f} points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("models", nargs="+", choices=list(KINDS))
    runs.add_argument("--device", default="cuda:0")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--requests", type=int, default=300)
    runs.add_argument("--steps", type=int, nargs=2, default=(20, 40))
    runs.add_argument("--repeats", type=int, default=1)
    again = commands.add_parser("replay")
    again.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.models, given.device, given.out, given.requests, tuple(given.steps), given.repeats)
    else:
        replay(given.out)


if __name__ == "__main__":
    main()
