"""Who may ask the page's server: this machine, by its name, from its own page, with the token."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.exploring.lanes import Lanes
from servetwin.experiments.exploring.pages import Pages
from servetwin.experiments.exploring.server import MOST, TOKEN, Server

pytest.importorskip("plotly")
psutil = pytest.importorskip("psutil")  # which distributed brings


@pytest.fixture(scope="module")
def server(lanes: Lanes) -> Iterator[Server]:
    made = Server(Pages("opt-13b-h100-async", [("requests", 60), ("rate", 30.0)], [], lanes), 0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def ask(
    server: Server, path: str = "/api/run", headers: dict[str, Any] | None = None, body: Any = None, method: str = ""
) -> tuple[int, str]:
    """Status and text of an answer; *headers* replace those of the page, or leave them out (None)."""
    usual: dict[str, Any] = {"Host": f"127.0.0.1:{server.server_port}"}
    if body is None:
        ask.number = getattr(ask, "number", 0) + 1  # type: ignore[attr-defined]
        body = {"tab": "test", "number": ask.number, "state": {}}  # type: ignore[attr-defined]
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("POST" if path.startswith("/api") else "GET")
    if method == "POST":
        own = {"Origin": server.address[:-1], "Sec-Fetch-Site": "same-origin", TOKEN: server.token}
        usual |= {**own, "Content-Type": "application/json", "Content-Length": str(len(text))}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {**usual, **(headers or {})}.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                connection.putheader(name, one)
    connection.endheaders(text if method == "POST" else None)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_page_asks_and_is_answered(server: Server):
    status, text = ask(server, "/api/start")
    assert (status, json.loads(text)["policy"]) == (200, "neustream-llm")
    status, text = ask(server)
    found = json.loads(text)
    assert status == 200
    assert "of 60 requests" in found["html"]
    assert [f["data"] for f in found["figures"]]
    assert found["commands"] == ["servetwin run opt-13b-h100-async --rate 30 --requests 60"]


def test_it_listens_on_the_loopback_interface_only(server: Server):
    mine = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [a.ip for a in mine if a.port == server.server_port] == ["127.0.0.1"]
    others = {a.address for own in psutil.net_if_addrs().values() for a in own if a.family == socket.AF_INET}
    for address in others - {"127.0.0.1"}:
        with pytest.raises(OSError, match=r"."), socket.create_connection((address, server.server_port), timeout=2):
            pass


STRANGERS: dict[str, dict[str, Any]] = {
    "a name that was made to lead here": {"Host": "evil.example:{port}"},
    "a name of this machine on another port": {"Host": "127.0.0.1:1"},
    "no name": {"Host": None},
    "two names": {"Host": ["127.0.0.1:{port}", "evil.example"]},
    "another origin": {"Origin": "http://evil.example"},
    "another port of this machine": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "an origin that is kept secret": {"Origin": "null"},
    "another site, by the browser's word": {"Origin": None, "Sec-Fetch-Site": "cross-site"},
    "nobody with the token": {TOKEN: None},
    "somebody with another token": {TOKEN: "x" * 32},
    "somebody with more than the token": {TOKEN: "{token}x"},
}


@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize("path", ["/api/start", "/api/run", "/api/other"])
def test_strangers_are_refused(server: Server, who: str, path: str):
    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value and value.format(port=server.server_port, token=server.token)

    headers = {name: filled(value) for name, value in STRANGERS[who].items()}
    status, text = ask(server, path, headers)
    assert status == 403
    assert "{" not in text
    if "Host" in headers:
        assert ask(server, "/", {"Host": headers["Host"]})[0] == 403


def test_other_origins_get_no_leave(server: Server):
    """The token's header makes a browser ask for leave first; no answer says that any other origin has it."""
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Headers": TOKEN}
    assert ask(server, method="OPTIONS", headers=asked)[0] == 403
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    given = {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    assert not [name for name in given if name.startswith("access-control")]
    assert "frame-ancestors 'none'" in given["content-security-policy"]
    assert "'unsafe-eval'" not in given["content-security-policy"]
    assert given["cross-origin-resource-policy"] == "same-origin"


def test_the_page_itself_holds_no_secret(server: Server):
    for path in ("/", "/explore.js", "/explore.css"):
        status, text = ask(server, path)
        assert status == 200
        assert server.token not in text
    assert ask(server, "/explore.js", {"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ask(server, "/", {"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link in a message
    for path in ("/../server.py", "/explore.js/..", "/etc/passwd", "/%2e%2e/server.py"):
        assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'"tab"', {}, 400),
        (b'{"tab": 3, "number": 1}', {}, 400),
        (b'{"tab": "a", "number": true}', {}, 400),
        (b'{"tab": "a", "number": NaN}', {}, 400),
        (b"[" * 60000, {}, 400),
        (b" " * (MOST + 1), {}, 413),
        (b"{}", {"Content-Length": "-1"}, 413),
        (b"{}", {"Content-Length": None}, 413),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Transfer-Encoding": "chunked"}, 415),
    ],
)
def test_questions_that_are_none_are_refused(server: Server, body: bytes, headers: dict[str, Any], status: int):
    assert ask(server, headers=headers, body=body)[0] == status


def test_what_is_wrong_with_an_experiment_is_a_line(server: Server):
    for changed, said in (
        ({"workload.arrivals.rate": "abc"}, "'abc'"),
        ({"workload.arrivals.rate": -3}, "greater than 0"),
        ({"policy.name": "sarathi", "policy.params.chunk": 0}, "chunk"),
        ({"deployment.replicas": 0}, "greater than or equal to 1"),
    ):
        ask.number += 1  # type: ignore[attr-defined]
        body = {"tab": "test", "number": ask.number, "state": {"changed": changed}}  # type: ignore[attr-defined]
        status, text = ask(server, body=body)
        assert status == 200
        error = json.loads(text)["error"]
        assert said in error
        assert "\n" not in error


def test_a_port_that_is_taken_is_told_or_another_is_taken(server: Server, lanes: Lanes):
    with pytest.raises(BadInput, match="cannot be listened on"):
        Server(server.pages, server.server_port)
    with Server(server.pages) as one, Server(server.pages) as other:
        assert one.server_port != other.server_port


def test_the_command_serves_until_it_is_ended():
    """It prints the address, answers there, and leaves no process behind."""
    command = [sys.executable, "-m", "servetwin.experiments.cli", "explore", "dit-s2-256-rtx4090", "--no-open"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--rate", "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"at http://127\.0\.0\.1:(\d+)/#token=\S+ \(Ctrl-C ends it\)$", line)
        assert found, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert helpers
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
        _, alive = psutil.wait_procs(helpers, timeout=10)
        assert alive == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["opt-13b-h100-asink"], "unknown workload"),
        (["opt-13b-h100-async", "--rate", "-1"], "--rate"),
        (["opt-13b-h100-async", "--policy", "edf"], "policy"),
        (["opt-13b-h100-async", "--policy", "sarathi", "--policy", "nobody"], "unknown policy 'nobody'"),
        (["opt-13b-h100-async", "--rate", "3", "--set", "rate=4"], "sets"),
        (["opt-13b-h100-async", "--port", "70000"], "--port"),
    ],
)
def test_bad_input_is_a_line_before_there_is_a_page(servetwin, arguments: list[str], what: str):
    code, printed, said = servetwin("explore", *arguments, "--no-open")
    assert (code, printed) == (2, "")
    assert what in said
    assert said.count("\n") == 1
