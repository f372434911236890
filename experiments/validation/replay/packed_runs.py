"""Run folders in one file: what of runs must be known to repeat them with their own requests.

A file ``folders-*.json.gz`` holds, of each run, what its ``meta.json`` and ``real.json`` say, what its summary
counts, and of each request when it came, its deadline, its work, its shape if it has one, how it ended and when; and
the files of users' own policies and routers. Runs of a diffusion model on several devices, and of requests of several
shapes, are kept so; profiles come along under the names that they give themselves.

``python -m servetwin.experiments.validation.replay.packed_runs FOLDER OUT`` packs the runs in FOLDER/runs, which were
made with the profiles in FOLDER/profiles.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from servetwin.core import BadInput
from servetwin.core.processes.temporary_folders import temporary_folder
from typing_extensions import TypedDict

from ..comparison.run_files import OPEN, Time, checked, request_lines
from . import as_command
from .diffusion import LETTERS

RIGHT = "run folders that ServeTwin packed"
#: What is kept of a summary.
COUNTS = ("requests", "met", "late", "dropped", "failed", "finished", "attainment", "request_goodput", "workers")
#: What is kept of each request.
COLUMNS = ("id", "arrival", "deadline", "work", "outcome", "finished")
#: Digits after the point of a time in seconds.
DIGITS = 6

#: The name of a file or folder, and of nothing above it.
Name = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}$")]


class _Experiment(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    policy: dict[str, Any]
    deployment: dict[str, Any]


class _Meta(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    experiment: _Experiment


class _Run(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: Name
    meta: _Meta
    summary: dict[str, Any]
    real: dict[str, Any]
    id: list[int]
    arrival: list[Time]
    deadline: list[Time | None]
    work: list[dict[str, int]]
    shapes: NotRequired[list[dict[str, Any]]]
    shape: NotRequired[list[int | None]]
    outcome: Annotated[str, Field(pattern=f"^[{''.join(LETTERS.values())}]*$")]
    finished: list[Time | None]


class _Packed(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    runs: Annotated[list[_Run], Field(min_length=1)]
    files: dict[Name, str]


def is_packed(path: Path) -> bool:
    """Whether *path* is a file of packed run folders."""
    return path.name.startswith("folders-") and path.name.endswith(".json.gz")


def pack(folder: Path, out: Path) -> list[str]:
    """Pack the runs in *folder*/runs into *out*; gives the names of those that did not come to their end.

    Profiles go by the names that the files in *folder*/profiles give themselves. The file of a policy or router comes
    along: a copy of it in *folder*, or itself if it is still where it was. Raises `BadInput` if it is neither.
    """
    from servetwin.profiles import load

    names = {path.name: load(str(path)).name for path in sorted((folder / "profiles").glob("*.yaml"))}
    runs, left = [], []
    files: dict[str, str] = {}
    places: dict[str, Path] = {}
    for place in sorted(path for path in (folder / "runs").iterdir() if path.is_dir()):
        if not (place / "summary.json").exists():
            left.append(place.name)
            continue
        meta, summary = _read(place / "meta.json"), _read(place / "summary.json")
        deployment = meta["experiment"]["deployment"]
        deployment["devices"] = {d: names.get(Path(p).name, p) for d, p in deployment["devices"].items()}
        for of, key in named_files(meta["experiment"]):
            named = Path(of[key])
            others = meta.get("policy_files", {}).get(of[key], {})  # what it imports or reads, by its place beside it
            for one in (named, *(named.parent / name for name in others if name != named.name)):
                if one.parent != named.parent:
                    right = "files that lie beside the policy"
                    raise BadInput(f"{named.name} needs {one}", where=str(place), right=right)
                if places.setdefault(one.name, one) != one:
                    what = f"{places[one.name]} and {one} have the same name"
                    raise BadInput(what, where=str(place), right="policies and routers with names of their own")
                files[one.name] = _source(one, folder)
            _rename(meta, of[key], named.name)
            of[key] = named.name
        lines = sorted(request_lines(place), key=lambda r: (r["arrival"], r["id"]))
        runs.append(
            {
                "name": place.name,
                "meta": meta,
                "summary": {name: summary[name] for name in COUNTS},
                "real": _read(place / "real.json") if (place / "real.json").exists() else {},
                "id": [r["id"] for r in lines],
                "arrival": [round(r["arrival"], DIGITS) for r in lines],
                "deadline": [None if r["deadline"] is None else round(r["deadline"], DIGITS) for r in lines],
                "work": [r["work"] for r in lines],
                **_shapes(lines),
                "outcome": "".join(LETTERS[r["outcome"]] for r in lines),
                "finished": [None if r["finished"] is None else round(r["finished"], DIGITS) for r in lines],
            }
        )
    text = json.dumps({"runs": runs, "files": files}, separators=(",", ":"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return left


def _shapes(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The shapes that there are, and of each request which of them it has; nothing where no request has one."""
    shapes: list[Any] = []
    which: list[int | None] = []
    for line in lines:
        shape = line.get("shape")
        if shape is not None and shape not in shapes:
            shapes.append(shape)
        which.append(None if shape is None else shapes.index(shape))
    return {"shapes": shapes, "shape": which} if shapes else {}


def routers(experiment: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where *experiment* names a router by a file: what holds the name, and under which key."""
    named = experiment["deployment"].get("router")
    return _by_file([(named, "name") if isinstance(named, dict) else (experiment["deployment"], "router")])


def named_files(experiment: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where *experiment* names a policy or a router by a file, likewise."""
    return [*_by_file([(experiment["policy"], "name")]), *routers(experiment)]


def _by_file(places: list[tuple[dict[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
    return [(of, key) for of, key in places if isinstance(of.get(key), str) and of[key].endswith(".py")]


def _rename(meta: dict[str, Any], was: str, now: str) -> None:
    """Let what *meta* says of the code of a policy or router stand under its name *now*, so that it is compared."""
    for known in (meta.get("policies"), meta.get("policy_files"), meta.get("routers")):
        if isinstance(known, dict) and was in known:
            known[now] = known.pop(was)


def _source(named: Path, folder: Path) -> str:
    for path in (folder / named.name, named):
        if path.exists():
            return path.read_text(encoding="utf-8")
    raise BadInput("the policy or router is not there", where=str(named), right=f"a copy of it in {folder}")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read(path: Path) -> dict[str, Any]:
    """What a file of packed runs holds. Raises `BadInput`."""
    try:
        data: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        checked(data, _Packed, "", "")
    except BadInput as error:
        raise BadInput(f"holds no packed runs: {error.what}", where=str(path), right=RIGHT) from None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise BadInput(f"holds no packed runs: {error}", where=str(path), right=RIGHT) from None
    names: set[str] = set(data["files"])
    for run in data["runs"]:
        where = f"{path}: {run['name']}"
        if run["name"] in names:
            raise BadInput("two runs or files have this name", where=where, right=RIGHT)
        names.add(run["name"])
        columns = [*COLUMNS, "shape"] if "shape" in run else COLUMNS
        if len({len(run[key]) for key in columns}) != 1:
            raise BadInput("does not say as much of each request", where=where, right=RIGHT)
        known = range(len(run.get("shapes", ())))
        if any(which is not None and which not in known for which in run.get("shape", ())):
            raise BadInput("a request is of none of the run's shapes", where=where, right=RIGHT)
        for of, key in named_files(run["meta"]["experiment"]):
            if of[key] not in data["files"]:
                raise BadInput(f"{of[key]} is not among the files that were packed", where=where, right=RIGHT)
    return data


@contextmanager
def unpacked(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder with the run folders of *paths*, while it lasts: what `folder` needs of them."""
    words = {letter: word for word, letter in LETTERS.items()}
    with temporary_folder() as work:
        for path in paths:
            data = read(path)
            here = work / path.name.removesuffix(".json.gz")
            here.mkdir()
            for name, text in data["files"].items():
                (here / Path(name).name).write_text(text, encoding="utf-8")
            for run in data["runs"]:
                _write(run, here, words)
        yield Path(work)


def _write(run: dict[str, Any], here: Path, words: dict[str, str]) -> None:
    folder, meta = here / Path(run["name"]).name, run["meta"]
    folder.mkdir()
    for of, key in named_files(meta["experiment"]):
        _rename(meta, of[key], str(here / of[key]))
        of[key] = str(here / of[key])
    for name in ("meta", "summary", "real"):
        (folder / f"{name}.json").write_text(json.dumps(run[name]), encoding="utf-8")
    columns = zip(*(run[key] for key in COLUMNS), run.get("shape", [None] * len(run["id"])), strict=True)
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as file:
        for number, arrival, deadline, work, letter, finished, shape in columns:
            line = {"id": number, "arrival": arrival, "deadline": deadline, "work": work, "reason": None}
            line |= {"outcome": words[letter], "finished": finished, "stages": []}
            if shape is not None:
                line["shape"] = run["shapes"][shape]
            file.write(json.dumps(line) + "\n")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        raise BadInput(f"there are {len(arguments)} arguments", where="packed_runs", right="FOLDER OUT")
    folder, out = map(Path, arguments)
    for name in pack(folder, out):
        sys.stdout.write(f"did not come to its end: {name}\n")


if __name__ == "__main__":
    as_command.run(main)
