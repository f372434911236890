"""Several servers behind ``--url``, with the experiment's router in front of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys

import pytest
from servetwin.core import BadInput

pytest.importorskip("h11", reason="a client of servers needs h11: pip install 'servetwin[url]'")

from servetwin.experiments.backends.serve import serve
from servetwin.experiments.spec.loading import load
from test_url import EVENT, Serving, chunk

#: What a user's router saw, by request.
ROUTER = '''from servetwin.core.routing import Router

seen = []


class Watch(Router):
    """Goes where the fewest are, and notes what it saw."""

    def route(self, request, workers, now):
        seen.append([(w.name, w.waiting, w.running, w.kv_use, [j.seconds for j in w.jobs()]) for w in workers])
        return min(workers, key=lambda w: w.present)
'''


def experiment(router, requests=12, replicas=2, rate=200.0):
    return load(
        {
            "extends": "tiny-opt-cpu",
            "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": rate}},
            "deployment": {"replicas": replicas, "router": router},
        }
    )


async def slowly(writer, asked) -> None:
    """Tokens one by one, the first after a while."""
    for _ in range(asked["max_tokens"]):
        await asyncio.sleep(0.004)
        writer.write(chunk(EVENT))
        await writer.drain()
    writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def served_by(folder) -> list[str]:
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return [json.loads(line)["stages"][0]["worker"] for line in sorted(lines, key=lambda s: json.loads(s)["id"])]


def test_requests_go_where_the_router_says(tmp_path):
    with Serving(answers=slowly) as a, Serving(answers=slowly) as b:
        found = serve(experiment("round_robin"), tmp_path / "run", backend="vllm", url=[a.url, b.url])
    assert found.summary["requests"] == found.summary["completed"] == 12
    names = served_by(tmp_path / "run")
    assert len(set(names)) == 2
    assert all(x != y for x, y in itertools.pairwise(names))  # by turns
    asked = [sum(head.startswith(b"POST") for head in server.heads) for server in (a, b)]
    assert asked == [6, 6]
    assert sorted(found.real["engine"]["requests"].values()) == [6, 6]
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert sorted(meta["engine"]["urls"].values()) == sorted([a.url, b.url])


def test_a_router_sees_what_the_client_knows(tmp_path):
    (tmp_path / "watch.py").write_text(ROUTER)
    one = experiment(str(tmp_path / "watch.py"), requests=16)
    with Serving(answers=slowly) as a, Serving(answers=slowly) as b:
        serve(one, tmp_path / "run", backend="vllm", url=[a.url, b.url])
    file = str(tmp_path / "watch.py")
    seen = next(m.seen for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file)
    assert len(seen) == 16
    assert all(waiting + running == 0 for _, waiting, running, _, _ in seen[0])
    assert any(waiting for row in seen for _, waiting, _, _, _ in row)
    assert any(running for row in seen for _, _, running, _, _ in row)
    for row in seen:
        for _, waiting, running, kv_use, jobs in row:
            assert math.isnan(kv_use)
            assert len(jobs) == waiting + running
            assert all(seconds >= 0.0 for seconds in jobs)
    assert len(set(served_by(tmp_path / "run"))) == 2


def test_a_central_queue_binds_when_a_server_has_room(tmp_path):
    """With one request at a server at a time, which servers do not know of themselves."""
    going = {"now": 0, "most": 0}

    async def counted(writer, asked) -> None:
        going["now"] += 1
        going["most"] = max(going["most"], going["now"])
        await slowly(writer, asked)
        going["now"] -= 1

    one = experiment({"name": "central", "params": {"depth": 1}}, requests=10, rate=1000.0)
    with Serving(answers=counted) as a:  # one server twice: it counts all
        found = serve(one, tmp_path / "run", backend="vllm", url=[a.url, a.url])
    assert found.summary["completed"] == 10
    assert going["most"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    waited = [line["stages"][0]["queued"] - line["arrival"] for line in lines]
    assert max(waited) > 0.01


def test_a_server_that_fails_costs_its_requests_and_no_others(tmp_path):
    async def broken(writer, asked) -> None:
        writer.close()

    with Serving(answers=slowly) as a, Serving(answers=broken) as b:
        found = serve(experiment("round_robin"), tmp_path / "run", backend="vllm", url=[a.url, b.url])
    assert found.summary["completed"] == 6
    assert found.summary["failed"] == 6


@pytest.mark.parametrize(
    ("urls", "workers", "line"),
    [
        (2, 1, r"--url: 2 servers for 1 workers \(llm\)"),
        (2, 3, r"--url: 2 servers for 3 workers"),
        (1, 2, "vLLM cannot serve 2 workers"),
    ],
)
def test_there_is_a_server_for_each_worker(urls, workers, line):
    with pytest.raises(BadInput, match=line):
        serve(experiment("round_robin", replicas=workers), backend="vllm", url=["http://127.0.0.1:9"] * urls)


def test_from_the_command_line(tmp_path, servetwin):
    command = ["run", "tiny-opt-cpu", "--requests", "6", "--rate", "100", "--set", "deployment.replicas=2"]
    with Serving() as a, Serving() as b:
        urls = ["--url", a.url, "--url", b.url]
        code, out, err = servetwin(*command, "--backend", "vllm", *urls, "--out", tmp_path / "run")
    assert code == 0, err
    assert "tokens of llm" in out
    assert len(served_by(tmp_path / "run")) == 6
