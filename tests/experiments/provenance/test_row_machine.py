"""The rows that sweeps keep, in the cache and beside a table under way, against a model: what was run by what.

Files that the policy stands on are edited and put back, sweeps are run, broken off and taken up, kept rows are cut
off and the cache is opened anew, in any order. The model says which points have to be run, and what their rows are.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from edited_policies import HEAD, ones_become_eights, spec, write
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from servetwin.experiments.sweeps import point as engine
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.cache import Cache

RATES = (12.0, 16.0, 20.0)

#: The policy runs 1 to 8 at once, by a module, a file that it declares, and one that it does not: each says 1 or 8.
MINE = f"""\
from pathlib import Path
import aid
{HEAD}

def said(name):
    return int(Path(__file__).with_name(name).read_text())


class Mine(Policy):
    files = ("declared.txt",)

    def __init__(self):
        self.most = 1 + (aid.N == 8) + 2 * (said("declared.txt") == 8) + 4 * (said("unseen.txt") == 8)

    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: min(self.most, view.limit)])
"""
FILES = {"mine.py": MINE, "aid.py": "N = 1\n", "declared.txt": "1", "unseen.txt": "1", "unused.py": "N = 1\n"}

#: What a point is known by, but for the file that its policy does not declare: rate, module and declared file.
Known = tuple[float, str, str]


class Rows(RuleBasedStateMachine):
    place: Path  # of the toy experiment
    ran: list[tuple[str, float]]  # which points are run: their keys and rates
    right: dict[tuple[str, ...], dict[float, dict]]  # rows by what the files say, from runs that keep nothing

    @initialize()
    def begin(self) -> None:
        self.ran.clear()
        for old in self.place.glob("cache*"):
            for file in old.iterdir():
                file.unlink()
        for old in self.place.glob("table*"):
            old.unlink()
        write(self.place, FILES)
        self.says = dict.fromkeys(("aid.py", "declared.txt", "unseen.txt", "unused.py"), "1")
        self.cache = Cache(self.place / "cache")
        # Under which contents of the file that is not declared a row is kept; a row of another takes its place.
        self.kept: dict[Known, str] = {}
        self.partial: list[tuple[Known, str]] = []  # line by line
        self.keys: dict[str, Known] = {}

    def _known(self, rate: float) -> Known:
        return rate, self.says["aid.py"], self.says["declared.txt"]

    def _spec(self, rates: list[float]) -> Path:
        return spec(self.place, rates=", ".join(map(str, rates)), requests=12)

    def _right(self, rates: list[float]) -> list[dict]:
        said = tuple(self.says[name] for name in ("aid.py", "declared.txt", "unseen.txt"))
        rows = self.right.setdefault(said, {})
        if missing := [rate for rate in rates if rate not in rows]:
            rows.update(zip(missing, sweep.sweep(self._spec(missing), None, jobs=1), strict=True))
            self.ran.clear()
        return [rows[rate] for rate in rates]

    def _missing(self, rates: list[float], *kept: dict[Known, str]) -> list[float]:
        unseen = self.says["unseen.txt"]
        return [rate for rate in rates if all(rows.get(self._known(rate)) != unseen for rows in kept)]

    def _has_run(self, rates: list[float], *, cached: bool) -> dict[Known, str]:
        """These points were run, in this order, and no others; gives under what their rows are kept."""
        assert [rate for _, rate in self.ran] == rates
        if cached:
            self.keys |= {key: self._known(rate) for key, rate in self.ran}
        self.ran.clear()
        return {self._known(rate): self.says["unseen.txt"] for rate in rates}

    @rule(name=st.sampled_from(["aid.py", "declared.txt", "unseen.txt", "unused.py"]))
    def edit(self, name: str) -> None:
        """So that neither its size nor its time tells; or back to what it was."""
        if self.says[name] == "1":
            ones_become_eights(self.place / name)
            self.says[name] = "8"
        else:
            before = (self.place / name).stat()
            (self.place / name).write_text(FILES[name])
            os.utime(self.place / name, ns=(before.st_atime_ns, before.st_mtime_ns))
            self.says[name] = "1"

    @rule(rates=st.lists(st.sampled_from(RATES), min_size=1, max_size=3, unique=True))
    def run(self, rates: list[float]) -> None:
        """A sweep with the cache runs what is not kept, and gives what a sweep without it does."""
        right, missing = self._right(rates), self._missing(rates, self.kept)
        assert sweep.sweep(self._spec(rates), None, jobs=1, cache=self.cache) == right
        self.kept |= self._has_run(missing, cached=True)

    @rule(after=st.integers(0, 2), cached=st.booleans())
    def break_off(self, after: int, cached: bool) -> None:
        """A sweep into a table is killed before its row of that number is there."""
        missing = self._missing([*RATES], dict(self.partial), *[self.kept][: 1 if cached else 0])
        if len(missing) <= after:
            return
        run_point = engine.run_point

        def breaks(experiment):
            if len(self.ran) == after:
                raise KeyboardInterrupt
            return run_point(experiment)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "run_point", breaks)
            with pytest.raises(KeyboardInterrupt):
                self._sweep_into_the_table(cached)
        done = self._has_run(missing[:after], cached=cached)
        self.partial += done.items()
        if cached:
            self.kept |= done

    @rule(cached=st.booleans())
    def take_up(self, cached: bool) -> None:
        """A sweep into the table runs what is kept nowhere; when it is over nothing lies beside the table."""
        right = self._right([*RATES])
        missing = self._missing([*RATES], dict(self.partial), *[self.kept][: 1 if cached else 0])
        assert self._sweep_into_the_table(cached) == right
        done = self._has_run(missing, cached=cached)
        assert not (self.place / "table.csv.part").exists()
        self.partial.clear()
        if cached:
            self.kept |= done

    def _sweep_into_the_table(self, cached: bool) -> list[dict]:
        cache = self.cache if cached else None
        return sweep.sweep(self._spec([*RATES]), self.place / "table.csv", jobs=1, cache=cache)

    @precondition(lambda self: self.partial)
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        """The last line beside the table was only half written."""
        part = self.place / "table.csv.part"
        whole = part.read_bytes().rstrip(b"\n")
        last = whole.rpartition(b"\n")[2]
        left = data.draw(st.integers(0, len(last) - 1))
        part.write_bytes(whole[: len(whole) - len(last) + left])
        self.partial.pop()

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A row in the cache is cut off."""
        key = data.draw(st.sampled_from(sorted(self.keys)))
        with sqlite3.connect(self.place / "cache" / "points.sqlite") as database:
            ((text,),) = database.execute("SELECT row FROM rows WHERE key = ?", (key,)).fetchall()
            text = text[: data.draw(st.integers(0, max(0, len(text) - 1)))]
            database.execute("UPDATE rows SET row = ? WHERE key = ?", (text, key))
        database.close()
        self.kept.pop(self.keys[key], None)

    @rule()
    def open_anew(self) -> None:
        self.cache.close()
        self.cache = Cache(self.place / "cache")

    @invariant()
    def the_cache_holds_what_is_true(self) -> None:
        if hasattr(self, "cache"):
            there = {self.keys[key] for key in self.cache}
            assert there == {known for known, unseen in self.kept.items() if unseen == self.says["unseen.txt"]}

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()


@pytest.mark.parametrize("examples", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_rows(place: Path, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    class Here(Rows):
        pass

    Here.place, Here.ran, Here.right = place, [], {}
    run_point = engine.run_point

    def noted(experiment):
        Here.ran.append((engine.key_of(experiment), experiment.workload.arrivals.rate))
        return run_point(experiment)

    monkeypatch.setattr(engine, "run_point", noted)
    run_state_machine_as_test(Here, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None))
