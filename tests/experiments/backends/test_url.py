"""Servers behind ``--url``: TLS, API keys, connections that are used again, and servers without an end."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import ssl
import subprocess
from dataclasses import replace

import pytest
from loop_servers import LoopServer
from servetwin.core import BadInput
from servetwin.core.llm import PromptContent

pytest.importorskip("h11", reason="a client of servers needs h11: pip install 'servetwin[url]'")

from servetwin.real.vllm import http_client, http_connection
from servetwin.real.vllm.http_client import serve_url
from servetwin.real.vllm.http_connection import Server, key_in
from servetwin.real.vllm.plan import Planned

KEY = "sk-a-key-that-nobody-may-see"
EVENT = b'data: {"choices": [{"token_ids": [7], "text": "x"}]}\n\n'
MODELS = b'{"data": [{"id": "m"}]}'
SENT = [Planned(i, 0.01 * i, 5, 3) for i in range(4)]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n" % len(body) + body + b"\r\n"


class Serving(LoopServer):
    """A server as vLLM's: connections stay open, answers come in chunks. It wants *key*, if it is given one, and
    answers completions with what *answers* writes; *heads* are those that it was asked with, *opened* counts
    connections."""

    def __init__(self, key=None, tls=None, answers=None, models=MODELS) -> None:
        super().__init__(tls)
        self.key, self.models = key, models
        self.answers = answers or self.tokens
        self.heads: list[bytes] = []
        self.opened = 0

    @staticmethod
    async def tokens(writer, asked) -> None:
        for _ in range(asked["max_tokens"]):
            writer.write(chunk(EVENT))
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def answer(self, reader, writer) -> None:
        self.opened += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            size = int(head.lower().partition(b"content-length:")[2].split()[0])
            asked = await reader.readexactly(size)
            given = head.lower().partition(b"authorization: bearer ")[2].split(b"\r\n")[0]
            if self.key is not None and given != self.key.encode().lower():
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            elif head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.models) + self.models)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                await self.answers(writer, json.loads(asked))
            await writer.drain()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that we made ourselves, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_tls_with_a_certificate_of_an_authority_that_is_known(certificate, tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with Serving(tls=tls) as server:
        run = serve_url(server.url, SENT)
    assert [r.outcome for r in run.requests] == ["finished"] * 4
    assert all(len(r.times) == 3 for r in run.requests)


def test_a_certificate_that_nobody_vouches_for_is_refused(tls):
    with Serving(tls=tls) as server, pytest.raises(BadInput, match="certificate verify failed") as refused:
        serve_url(server.url, SENT)
    assert "\n" not in str(refused.value)


def test_a_server_without_tls_is_no_https_server(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST", 0.5)
    with Serving() as server, pytest.raises(BadInput, match="no server answers"):
        serve_url(server.url.replace("http", "https"), SENT)


def test_the_key_goes_with_each_request():
    with Serving(key=KEY) as server:
        run = serve_url(server.url, SENT, key=KEY)
    assert [r.outcome for r in run.requests] == ["finished"] * 4
    assert all(f"Bearer {KEY}".encode() in head for head in server.heads)


def test_without_the_key_one_line_says_how_to_give_it():
    with Serving(key=KEY) as server:
        with pytest.raises(BadInput, match=r"answers /v1/models with 401 .*--api-key-env"):
            serve_url(server.url, SENT)
        with pytest.raises(BadInput, match="401") as refused:
            serve_url(server.url, SENT, key="sk-another")
    assert "sk-another" not in str(refused.value)


async def tells_the_key(writer, asked) -> None:
    writer.write(chunk(b'data: {"error": "%s is no good key"}\n\n' % KEY.encode()) + b"0\r\n\r\n")


def test_the_key_is_in_no_record_and_no_message(servetwin, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    options = ["--backend", "vllm", "--requests", 5, "--rate", 100, "--api-key-env", "MY_KEY"]
    with Serving(key=KEY, answers=tells_the_key) as server:
        code, out, err = servetwin("run", "tiny-opt-cpu", *options, "--url", server.url, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    kept = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert "(the API key) is no good key" in kept["requests.jsonl"]
    with Serving(key=KEY, models=b'{"error": "%s"}' % KEY.encode()) as server:
        code, out, err = servetwin("run", "tiny-opt-cpu", *options, "--url", server.url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert KEY[:12] not in "".join([out, err, *kept.values()])


@pytest.mark.parametrize("held", [None, "", "  ", "two words", "ключ"])
def test_a_variable_without_a_key(held, monkeypatch, servetwin):
    monkeypatch.delenv("MY_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("MY_KEY", held)
    options = ("--backend", "vllm", "--url", "http://127.0.0.1:9", "--api-key-env", "MY_KEY")
    code, out, err = servetwin("run", "tiny-opt-cpu", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("servetwin: --api-key-env: the environment variable MY_KEY")
    assert not held or held.strip() == "" or held not in err


def test_a_key_is_for_a_server(servetwin):
    code, _, err = servetwin("run", "tiny-opt-cpu", "--backend", "vllm", "--api-key-env", "MY_KEY")
    assert (code, err) == (2, "servetwin: --api-key-env: this is for a server (right would be: --url https://host)\n")
    assert key_in(None, {}) is None


@pytest.mark.parametrize(
    "url", ["http://me:secret@127.0.0.1", "https://127.0.0.1/v?token=secret", "http://x/#secret"]
)
def test_what_may_be_secret_in_an_address_is_refused_and_not_shown(url):
    with pytest.raises(BadInput, match="--api-key-env") as refused:
        Server(url)
    assert "secret" not in str(refused.value)


def test_a_connection_is_used_again():
    one_after_the_other = [Planned(i, 0.1 * i, 5, 3) for i in range(5)]
    with Serving() as server:
        run = serve_url(server.url, one_after_the_other)
    assert [r.outcome for r in run.requests] == ["finished"] * 5
    assert server.opened < 5 < len(server.heads)


async def then_closes(writer, asked) -> None:
    await Serving.tokens(writer, asked)
    await writer.drain()
    writer.close()


def test_a_connection_that_the_server_closed_meanwhile_is_not():
    with Serving(answers=then_closes) as server:
        run = serve_url(server.url, [Planned(i, 0.05 * i, 5, 3) for i in range(5)])
    assert [r.outcome for r in run.requests] == ["finished"] * 5


async def no_end(writer, asked) -> None:
    while not writer.is_closing():
        writer.write(chunk(b": still here\n\n" * 5000))
        await writer.drain()


def test_a_stream_without_end_is_cut_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(http_connection, "MOST_ANSWER", 6 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Serving(answers=no_end) as server:
        run = serve_url(server.url, SENT[:2])
    assert {(r.outcome, r.reason) for r in run.requests} == {("failed", "the server answered with more than 6 MiB")}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


async def lingers(writer, asked) -> None:
    for _ in range(asked["max_tokens"]):
        writer.write(chunk(EVENT))
    writer.write(chunk(b"data: [DONE]\n\n"))
    await writer.drain()
    await asyncio.sleep(5)


def test_a_server_that_does_not_end_its_answer_after_the_last_token_does_not_hold_the_run(monkeypatch):
    monkeypatch.setattr(http_client, "PATIENCE", 2.0)
    with Serving(answers=lingers) as server:
        run = serve_url(server.url, SENT)
    assert [r.outcome for r in run.requests] == ["finished"] * 4
    assert all(r.ended - r.times[-1] < 0.2 for r in run.requests)


def test_prompts_begin_alike_for_a_server_that_caches_and_it_says_what_it_found():
    asked = []

    async def answers(writer, said) -> None:
        asked.append(said)
        for _ in range(said["max_tokens"]):
            writer.write(chunk(EVENT))
        usage = {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 16 * (len(asked) - 1)}}}
        writer.write(chunk(b"data: %s\n\n" % json.dumps(usage).encode()))
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    content = PromptContent(("system",), 20)
    planned = [Planned(i, 0.05 * i, 30, 3, prefix=content if i < 2 else None) for i in range(3)]
    with Serving(answers=answers) as server:
        run = serve_url(server.url, planned, caching=True)
        again = serve_url(server.url, planned[:1], caching=True)
        plain = serve_url(server.url, planned[:1])
    assert [served.cached for served in run.requests] == [0, 16, 32]
    prompts = [said["prompt"] for said in asked]
    assert prompts[0][:20] == prompts[1][:20] != prompts[2][:20]
    assert prompts[0][20:] != prompts[1][20:]
    salts = [said.get("cache_salt") for said in asked]
    assert len(set(salts)) == 3  # a salt for each run, and none where nothing is cached
    assert salts[:3] == salts[:1] * 3
    assert (salts[4], "stream_options" in asked[4]) == (None, False)
    assert {served.outcome for served in (*run.requests, *again.requests, *plain.requests)} == {"finished"}


def test_where_one_fails_nothing_stays_open():
    """The others are given up, and their connections closed, also those of answers that end meanwhile."""
    asked_for, still = [], []

    def ids(planned: Planned) -> list[int]:
        if planned.id == 3:
            raise BadInput("no words for it")
        return [1] * planned.prompt

    class Watched(Server):
        async def _asked(self, *a):
            connection, status = await super()._asked(*a)
            asked_for.append(connection)
            return connection, status

    async def slow(writer, asked) -> None:
        writer.write(chunk(EVENT))
        await writer.drain()
        still.append(1)
        await asyncio.sleep(1.5)

    late = [*SENT[:3], replace(SENT[3], arrival=0.5)]

    async def sent(url: str) -> None:
        server = Watched(url)
        with pytest.raises(BadInput, match="no words"):
            await http_client._serve(server, late, None, http_client.Wording(ids))
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert all(connection.writer.is_closing() for connection in asked_for)

    with Serving(answers=slow) as server:
        asyncio.run(sent(server.url))
    assert len(asked_for) > 1  # the list of models, and those that had begun
    assert still


def test_a_connection_that_is_used_again_is_closed_where_its_answer_is_not_awaited():
    """Its head had not come: it was neither idle nor closed, and stayed open as long as the process."""

    async def given_up(server: Server) -> None:
        assert await http_client.model_of(server, None) == "m"
        (again,) = server._idle
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), server.ask("POST", "/v1/completions", b"{}"):
                pass
        assert again.writer.is_closing()
        assert server._idle == []
        server.close()

    async def mute(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(MODELS) + MODELS)
        await reader.read()

    with Serving() as server:
        server.answer = mute
        asyncio.run(given_up(Server(server.url)))
