"""Case 22: damaged run folders, recordings and tables, servers that answer badly, scripts that attack the run.

Whatever a file holds ends in one line that names it, with exit code 2, or in an answer; a server's bad answer fails
that request, or ends the run in one line; a script fails only itself. Damages are drawn by seed (`mutations`).
"""

import gzip
import json
import os
import random
import shutil
from pathlib import Path

import mutations
import pytest
from by_command import call, records, refused, summary
from loop_servers import LoopServer
from servetwin.core.installed import not_installed
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.real.tools.sandbox import Limits, confinement, run_script
from servetwin.real.vllm import http_client

# -- run folders --------------------------------------------------------------------------------------------------

RUNS = {"steps": ("dit-s2-256-rtx4090", 12), "tokens": ("opt-13b-a6000", 6), "agents": ("matplotagent-rtx4090", 2)}
FILES = ("meta.json", "summary.json", "requests.jsonl", "batches.jsonl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A run of each kind."""
    top = tmp_path_factory.mktemp("runs")
    for kind, (workload, requests) in RUNS.items():
        records(workload, "--requests", requests, out=top / kind)
    return {kind: top / kind for kind in RUNS}


def commands(first: Path, second: Path) -> list[tuple[object, ...]]:
    return [
        ("compare", first, second), ("compare", second, second, "--json"), ("trace", second, "--out", "t.json"),
        ("score", second, "--out", "rows.csv", "--seeds", 1),
    ]  # fmt: skip


def ends_in_a_line(*command: object) -> int:
    code, out, err = call(*command)
    assert code in (0, 2), (command, err)
    if code:
        assert (out, err.count("\n")) == ("", 1), (command, out, err)
    return code


CASES = {
    "22 case: meta.json that is no UTF-8": ("meta.json", lambda t: b"\xff" + t, "UTF-8"),
    "22 case: a number for a line": ("requests.jsonl", lambda t: b"2\n" + t, "it is 2, and not a mapping"),
    "22 case: a key that is gone": ("requests.jsonl", lambda t: t.replace(b'"arrival"', b'"arival"', 1), "arrival"),
    "22 case: a torn line": ("requests.jsonl", lambda t: t[:-9], "no JSON"),
    "22 case: a summary without a count": ("summary.json", lambda t: t.replace(b'"finished"', b'"f"'), "finished"),
    "22 NaN for a time": ("requests.jsonl", lambda t: t.replace(b'"arrival": ', b'"arrival": NaN, "a": ', 1),
                           "arrival"),
    "22 a request twice": ("requests.jsonl", lambda t: t + t.splitlines()[0] + b"\n", "twice"),
    "22 another outcome": ("requests.jsonl", lambda t: t.replace(b'"met"', b'"won"', 1), "outcome"),
    "22 counts of another run": ("summary.json", lambda t: t.replace(b'"met": 12', b'"met": 11'), "summary.json"),
    "22 nested too deep": ("meta.json", lambda t: b'{"a": ' + b"[" * 10**5, "deep"),
    "22 a size that is none": ("summary.json", lambda t: t.replace(b'"1": ', b'"x": '),
                               "batch_sizes"),
    "22 digits without end": ("summary.json", lambda t: t.replace(b'"met": 12', b'"met": ' + b"1" * 5000), "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_22_a_damaged_run_folder_is_told_by_file_and_key(case, folders, here) -> None:
    name, damage, word = case
    shutil.copytree(folders["steps"], here / "x")
    text = (here / "x" / name).read_bytes()
    (here / "x" / name).write_bytes(damage(text))
    assert (here / "x" / name).read_bytes() != text
    for command in commands(folders["steps"], here / "x"):
        if command[0] == "trace" and name == "summary.json":
            continue  # which it does not read
        if command[0] == "trace" and "counts" in word:
            continue
        said = refused(*command, says=(str(here / "x"),))
        assert word in said, said
    assert not (here / "rows.csv").exists()


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("seed", range(12))
def test_22_whatever_stands_in_a_run_folder(kind, seed, folders, here) -> None:
    draw = random.Random(f"{kind} {seed}")
    shutil.copytree(folders[kind], here / "x")
    path = here / "x" / draw.choice(FILES)
    path.write_bytes(mutations.mutated(path.read_text(), draw))
    for command in commands(folders[kind], here / "x")[: 4 if kind == "steps" else 3]:
        ends_in_a_line(*command)


# -- recordings and tables ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recordings() -> dict[str, str]:
    """One short run of each kind."""
    with gzip.open(MEASURED / "h100-quiet/diffusion/dit-s2-256.json.gz") as file:
        steps = json.load(file)
    with gzip.open(MEASURED / "h100-knees/llm-opt-13b.json.gz") as file:
        tokens = json.load(file)
    steps["runs"], tokens["runs"] = steps["runs"][:1], tokens["runs"][:1]
    for name in ("arrival", "slo", "steps", "outcome", "finished"):
        steps["runs"][0][name] = steps["runs"][0][name][:8]
    tokens["runs"][0]["requests"] = tokens["runs"][0]["requests"][:4]
    return {"steps.json.gz": json.dumps(steps), "llm-tokens.json.gz": json.dumps(tokens)}


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]


def endless(data: bytes) -> bytes:
    return data.replace(b'"rate": ', b'"rate": 1e999, "r": ', 1)


PACKED = {
    "22 case: a flipped byte": (flipped, ""),
    "22 case: nested too deep": (lambda data: gzip.compress(b'{"runs": ' + b"[" * 10**6), "deep"),
    "22 cut off": (lambda data: data[:-20], "not whole"),
    "22 no gzip": (lambda data: b"{}", "no gzip file"),
    "22 no object": (lambda data: gzip.compress(b"[1]"), "mapping"),
    "22 no runs": (lambda data: gzip.compress(b"{}"), "no key"),
    "22 infinity": (lambda data: gzip.compress(endless(gzip.decompress(data))), "rate"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["steps.json.gz", "llm-tokens.json.gz"])
@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
def test_22_a_damaged_recording_is_told(case, name, recordings, here) -> None:
    damage, word = case
    (here / name).write_bytes(damage(gzip.compress(recordings[name].encode())))
    refused("score", name, "--out", "rows.csv", "--seeds", 1, says=(name, word))
    assert not (here / "rows.csv").exists()


@pytest.mark.parametrize("name", ["steps.json.gz", "llm-tokens.json.gz"])
@pytest.mark.parametrize("seed", range(10))
def test_22_whatever_stands_in_a_recording(name, seed, recordings, here) -> None:
    draw = random.Random(f"{name} {seed}")
    (here / name).write_bytes(gzip.compress(mutations.mutated(recordings[name], draw)))
    ends_in_a_line("score", name, "--out", "rows.csv", "--seeds", 1)


CELLS = ("", "x", "-1", "0", "1e308", "nan", "inf", "9" * 40, '"', "\0", "1_0", "2024-99-99", "a" * 140_000, "½")


@pytest.mark.parametrize("cell", CELLS, ids=[f"22 {cell[:9]!r}" for cell in CELLS])
def test_22_whatever_stands_in_a_table_of_measured_runs(cell, here) -> None:
    header, line = (MEASURED / "neustream_ae.csv").read_text().splitlines()[:2]
    names, cells = header.split(","), line.split(",")
    cells[names.index("requests")], cells[names.index("met")], cells[names.index("finished")] = "10", "5", "6"
    for place in range(len(cells)):
        (here / "t.csv").write_text("\n".join([header, ",".join([*cells[:place], cell, *cells[place + 1 :]])]) + "\n")
        ends_in_a_line("score", "t.csv", "--out", "rows.csv", "--seeds", 1)


WIDE = "a" * 140_000
TABLES = {
    "22 case: tokens without end": (
        "t.jsonl",
        '{"arrival": 1, "tokens": Infinity}\n',
        "no number of tokens",
    ),
    "22 a wide field of a trace": ("t.csv", f"arrival,tokens\n1.0,{WIDE}\n", "t.csv"),
    "22 a negative number of tokens": ("t.jsonl", '{"arrival": 1, "tokens": -4}\n', "1 or more"),
    "22 half a token": ("t.csv", "arrival,tokens\n1.0,2.5\n", "whole number"),
    "22 no time": ("t.jsonl", '{"arrival": NaN, "tokens": 4}\n', "arrival"),
    "22 nested too deep": ("t.jsonl", "[" * 10**5 + "\n", "t.jsonl"),
}


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES)
def test_22_whatever_stands_in_a_trace(case, here) -> None:
    name, text, word = case
    (here / name).write_text(text)
    (here / "e.yaml").write_text(f"""
extends: opt-13b-a6000
workload:
  requests: null
  draws: seeded
  arrivals: {{process: trace, file: {name}}}
  lengths: {{llm: {{prompt: {{draw: constant, tokens: 5}}, output: {{draw: trace}}, limit: 64}}}}
""")
    refused("run", "e.yaml", says=(word,))


@pytest.mark.parametrize("value", ["9" * 5000, "2024-02-31"])
@pytest.mark.parametrize("command", ["run", "sweep", "profiles"])
def test_22_a_value_of_yaml_that_is_none(command, value, here) -> None:
    (here / "a.yaml").write_text(f"name: {value}\n")
    refused(command, "a.yaml", *(["--out", "o.csv"] if command == "sweep" else []), says=("a.yaml",))


def test_22_a_wide_field_of_a_profile(here) -> None:
    (here / "p.csv").write_text(f"module,batch,seconds\ndit,1,{WIDE}\n")
    refused("profiles", "p.csv", says=("p.csv",))


# -- servers ------------------------------------------------------------------------------------------------------

needs_h11 = pytest.mark.skipif(bool(not_installed("h11")), reason="needs h11: pip install 'servetwin[url]'")

MODELS = b'{"data":[{"id":"m"}]}'
EVENT, DONE = b'data: {"choices": [{"token_ids": [1], "text": "x"}]}\n\n', b"data: [DONE]\n\n"


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n" % len(part) + part + b"\r\n" for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def stream(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body


class Answering(LoopServer):
    """A server that answers the list of models with *models*, and each completion with *answers* of its tokens."""

    def __init__(self, models: bytes, answers) -> None:
        super().__init__()
        self.models, self.answers = models, answers

    async def answer(self, reader, writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = await reader.readexactly(size)
        writer.write(self.models if head.startswith(b"GET") else self.answers(json.loads(body)["max_tokens"]))
        await writer.drain()


def asked(url: str, *more: object) -> tuple[object, ...]:
    return "tiny-opt-cpu", "--backend", "vllm", "--url", url, "--requests", 3, "--rate", 50, *more


NO_MODELS = {
    "22 case: html": whole(b"<html>not json</html>"),
    "22 case: garbage": b"\x00\xff garbage\r\n\r\n",
    "22 case: nothing": b"",
    "22 case: no data": whole(b'{"x":1}'),
    "22 case: no models": whole(b'{"data":[]}'),
    "22 case: a list": whole(b"[1,2]"),
    "22 case: huge": b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (9 << 20),
    "22 case: no status": b"HTTP/1.1\r\n\r\n" + MODELS,
    "22 case: elsewhere": whole(b"", b"302 Found"),
    "22 a head without end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (1 << 18),
    "22 less than it says": whole(MODELS)[:-4],
    "22 a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + MODELS,
    "22 chunks of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "22 half a chunk": in_chunks(MODELS, 8)[:-12],
    "22 models without names": whole(b'{"data":[{"id":5}]}'),
    "22 nested too deep": whole(b"[" * 10**5),
}


@needs_h11
@pytest.mark.parametrize("models", NO_MODELS.values(), ids=NO_MODELS)
def test_22_a_server_that_is_none_ends_the_run_in_a_line(models, here) -> None:
    with Answering(models, lambda n: b"") as server:
        said = refused("run", *asked(server.url), says=("--url", "/v1/models"))
    assert said.isprintable() or said.rstrip("\n").isprintable()


BAD_ANSWERS = {
    "22 case: an event that is no JSON": (lambda n: stream(b"data: {not json\n\n"), "no JSON"),
    "22 case: a list": (lambda n: stream(b"data: [1,2]\n\n"), "no object"),
    "22 case: a choice that is none": (lambda n: stream(b'data: {"choices": [1]}\n\n'), "choice"),
    "22 case: ids that are none": (lambda n: stream(b'data: {"choices": [{"token_ids": 5}]}\n\n'), "token_ids"),
    "22 case: no choices": (lambda n: stream(b'data: {"choices": null}\n\n'), "0 of"),
    "22 case: a line without end": (lambda n: stream(b"data: " + b"x" * (3 << 20)), "a line of more than"),
    "22 case: more tokens than asked for": (
        lambda n: stream(b'data: {"choices": [{"token_ids": [' + b"1," * 9999 + b"1]}]}\n\n" + DONE), "more than the",
    ),
    "22 case: no answer": (lambda n: b"", "no HTTP"),
    "22 one token too many": (lambda n: stream(EVENT * (n + 1) + DONE), "more than the"),
    "22 an error": (lambda n: stream(b'data: {"error": "no"}\n\n'), "an error"),
    "22 another status": (lambda n: whole(b"", b"503 Busy"), "status 503"),
    "22 an end too soon": (lambda n: stream(EVENT), "after 1 of"),
    "22 a reason that is none": (lambda n: stream(b'data: {"choices": [{"finish_reason": 4}]}\n\n'), "finish_reason"),
}  # fmt: skip


@needs_h11
@pytest.mark.parametrize("case", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_22_a_bad_answer_fails_that_request(case, here) -> None:
    answer, word = case
    with Answering(whole(MODELS), answer) as server:
        requests, _ = records(*asked(server.url), out=here / "o")
    assert [r["outcome"] for r in requests] == ["failed"] * 3
    assert all(word in r["reason"] for r in requests), requests


@needs_h11
@pytest.mark.parametrize("size", [1, 3, 7, 1000], ids=lambda size: f"22 case: chunks of {size}")
def test_22_a_chunked_answer_is_an_answer(size, here) -> None:
    with Answering(in_chunks(MODELS, size), lambda n: in_chunks(EVENT * n + DONE, size)) as server:
        assert summary(*asked(server.url))["finished"] == 3


@needs_h11
def test_22_a_server_that_says_nothing_does_not_hold_the_run(monkeypatch, here) -> None:
    monkeypatch.setattr(http_client, "PATIENCE", 0.3)
    with Answering(whole(MODELS), lambda n: stream(b": keep alive\n\n") + EVENT * 0) as server:
        requests, _ = records(*asked(server.url), out=here / "o")
    assert {r["outcome"] for r in requests} == {"failed"}


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "ftp://x", "http://", "http://127.0.0.1:x", "http://[::1"])
def test_22_an_address_that_is_none(url, here) -> None:
    refused("run", *asked(url), says=("--url",))


# -- scripts ------------------------------------------------------------------------------------------------------

ALONE = {"no_network", "writes_confined", "own_processes", "no_path_sockets"} <= set(confinement())
confined = pytest.mark.skipif(not ALONE, reason="this system does not confine scripts for this user")
SHORT = Limits(seconds=5.0, strict=False)


def ran(folder: Path, text: str):
    (folder / "s.py").write_text(text)
    return run_script(folder / "s.py", SHORT)


def alive(mark: str) -> bool:
    """Whether a process says *mark* on its command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if mark.encode() in (process / "cmdline").read_bytes() and state not in "ZX":
                return True
        except OSError:
            continue
    return False


ATTACKS = {
    "22 case: a signal to its parent": "import os; os.kill(os.getppid(), 9)",
    "22 case: its parent's limits": "import os\nfrom resource import *\nprlimit(os.getppid(), RLIMIT_NOFILE, (3, 3))",
    "22 a signal to all": "import os; os.kill(-1, 15)",
    "22 a signal to its group": "import os; os.killpg(0, 9)",
    "22 case: other files by its names": "import os; os.rename('output', 'x'); os.mkdir('output')\n"
    "os.remove('s.py'); os.mkdir('s.py'); raise SystemExit('\\x1b[31mred \\x07')",
    "22 case: closing what it was given": "import os, sys\nfor f in range(3, 60):\n    try: os.close(f)\n"
    "    except OSError: pass\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
}  # fmt: skip


@confined
@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_22_a_script_reaches_nobody_but_itself(text, here) -> None:
    """This very process is its parent's parent."""
    result = ran(here, text)
    assert result.reason.isprintable()
    with open(os.devnull, "rb"):  # this process still opens files
        assert ran(here, "print('well')").output == "well\n"


@confined
def test_22_a_nest_of_folders_ends_nothing_and_is_removed(here) -> None:
    text = "import os\nprint(os.getcwd())\nfor i in range(1000):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    result = ran(here, text)
    assert result.ok, result.reason
    assert not os.path.exists(result.output.strip())


@confined
def test_22_no_process_outlives_its_script(here) -> None:
    mark = f"outlives-{os.getpid()}"
    text = f"""import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'], start_new_session=True)
    os._exit(0)
import time; time.sleep(0.5)
"""
    assert ran(here, text).ok
    assert not alive(mark)


@confined
@pytest.mark.parametrize("what", ["AF_UNIX, socket.SOCK_STREAM", "AF_UNIX, socket.SOCK_DGRAM"])
def test_22_no_helper_outside_is_reached_by_a_socket(what, here) -> None:
    assert "PermissionError" in ran(here, f"import socket; socket.socket(socket.{what})").reason
    assert ran(here, "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))").output == "b'x'\n"
