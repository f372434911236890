"""What comes with the project of an `agents_campaign.py` folder.

::

    agents_pack.py FOLDER PROFILE.yaml RECORDING.json.gz WORKLOAD.yaml --name h200/codellama-7b
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from servetwin.profiles.schema import ProfileFile
from servetwin.real.vllm.profiling.fitting.pair_fit import contention


def pack(folder: Path, profile: Path, recording: Path, workload: Path, name: str) -> None:
    """What comes with the project: the profile with the rates of both engines, runs without steps, the experiment."""

    def read(what: str) -> Any:
        with gzip.open(folder / f"{what}.json.gz", "rt") as file:
            return json.load(file)

    content = yaml.safe_load((folder / "profile.yaml").read_text())
    content["name"] = name
    content["costs"] |= contention(read("pairs"), "agents_campaign.py, pairs")
    ProfileFile.model_validate(content)
    text = yaml.safe_dump(content, sort_keys=False, width=118, default_flow_style=None)
    profile.write_text("# Made by `tests/real/vllm/agents_pack.py`; times in seconds.\n" + text)
    runs = read("runs")
    experiment = yaml.safe_load(runs[0]["experiment"])
    experiment["name"] = workload.stem
    experiment["deployment"]["devices"] = {"gpu": name}
    for worker in experiment["deployment"]["workers"]:
        if "device" in worker:
            worker["device"] = "gpu"
        worker.pop("scripts", None)
    for run in runs:
        own = yaml.safe_load(run.pop("experiment"))
        run["seed"] = own["seed"]
        run.pop("steps")
        rows = []
        for r in run["requests"]:
            stays = [[t["stage"], t["queued"], t["finished"]] for t in r["stages"]]
            rows.append([r["id"], r["arrival"], r["outcome"], r["finished"], stays])
        run["requests"] = rows
    workload.write_text(yaml.safe_dump(experiment, sort_keys=False, width=118, default_flow_style=None))
    kept = {"workload": workload.stem, "switching": read("switching"), "runs": runs}
    with gzip.GzipFile(recording, "wb", compresslevel=9, mtime=0) as raw:
        raw.write(json.dumps(kept, separators=(",", ":")).encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    for what in ("folder", "profile", "recording", "workload"):
        parser.add_argument(what, type=Path)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    pack(args.folder, args.profile, args.recording, args.workload, args.name)


if __name__ == "__main__":
    sys.exit(main())
