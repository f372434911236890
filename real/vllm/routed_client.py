"""A client of several servers, in front of which a router of ours stands.

Servers say nothing of themselves, so what a router sees of one is what its client knows: who was sent there and has
no token yet (waiting), who has some (running), and how many they still may get. How much of its KV cache is taken
nobody knows (nan).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servetwin.core import BadInput, Request, Stage, Task, Worker
from servetwin.core.llm import TokenRequest, TokenTask
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.dispatch import Dispatcher

from .http_client import LEAD, Wording, all_of, asked, in_turns, model_of, wording
from .http_connection import Server, closing
from .plan import Planned, Run, Served, SessionSender


class ServerWorker(TokenWorker):
    """A worker whose steps a server makes that somebody else runs."""

    def attach(self, loop: Any) -> None:
        self.loop = loop

    def serve_alone(self) -> None:
        """There is no shorter way."""
        return

    def task(self, request: Request, now: float) -> TokenTask:
        assert isinstance(request, TokenRequest)
        tokens: Any = request.tokens[self.stage.loop or self.stage.name]
        return TokenTask(request, self.stage, now, self.place, *tokens)

    def seconds_alone(self, request: Request, now: float) -> float:
        return self.view.solo(self.task(request, now))

    @property
    def kv_use(self) -> float:
        return math.nan

    # What happens at a server nobody hears of, so that it counts as changed whenever a router looks.

    @property
    def unsettled(self) -> bool:
        return True

    def note_changes(self, noting: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        pass

    def seconds_left(self) -> list[float] | None:
        return None

    def alike(self) -> object:
        return Worker.alike(self)


class Front:
    """Says which of *workers*, all of one stage, a request goes to, as a serving loop does, and keeps what the client
    knows of each. *router* is the experiment's."""

    def __init__(self, workers: Sequence[ServerWorker], router: Dispatcher) -> None:
        self.workers = list(workers)
        self.router = router
        self.zero = 0.0
        self.at: dict[int, ServerWorker] = {}  # who served each request
        self.now: Callable[[], float] = lambda: time.monotonic() - self.zero
        self._bound: dict[int, asyncio.Future[TokenTask]] = {}
        router.attach(self)
        for worker in self.workers:
            worker.attach(self)

    def forward(
        self, request: Request, stage: Stage, before: Task | None, jump: bool = False, target: Worker | None = None
    ) -> None:
        """The router has bound *request*, which waited centrally."""
        assert isinstance(target, ServerWorker)
        self._bound[request.id].set_result(self._send(request, target))

    async def place(self, request: Request) -> TokenTask:
        """The visit of *request*, which has just come, to the worker that the router names; at once, or when that has
        room."""
        worker = self.router(request, self.workers, self.now())
        if worker is not None:
            assert isinstance(worker, ServerWorker)
            return self._send(request, worker)
        bound: asyncio.Future[TokenTask] = asyncio.get_running_loop().create_future()
        self._bound[request.id] = bound
        self.router.hold(request, self.workers[0].stage, None, self.workers)
        return await bound

    def _send(self, request: Request, worker: ServerWorker) -> TokenTask:
        task = worker.task(request, self.now())
        request.tasks.append(task)
        worker.view.waiting[task] = None
        self.at[request.id] = worker
        return task

    def heard(self, task: TokenTask, tokens: int) -> None:
        """So many tokens of *task* have come by now."""
        view = self.at[task.id].view
        if task in view.waiting:
            del view.waiting[task]
            view.running[task] = None
        task.generated, task.computed = tokens, task.prompt + tokens - 1

    def over(self, task: TokenTask) -> None:
        """*task* is there no more."""
        view = self.at[task.id].view
        view.waiting.pop(task, None)
        view.running.pop(task, None)
        self.router.freed(task.stage)


def serve_urls(
    urls: Mapping[str, str],
    requests: Sequence[Planned],
    front: Front,
    shown: Mapping[int, TokenRequest],
    *,
    model: str | None = None,
    key: str | None = None,
    caching: bool = False,
) -> Run:
    """Send *requests* (by arrival) on their clock to the servers at *urls*, by the names of the workers of *front*,
    whose router says which; *shown* is what it sees of each request. Otherwise as
    `servetwin.real.vllm.http_client.serve_url`. Raises `BadInput` if one is no such server.
    """
    servers = {name: Server(url, key) for name, url in urls.items()}
    return asyncio.run(_serve(servers, list(requests), front, shown, model, wording(caching)))


def serve_urls_in_turns(
    urls: Mapping[str, str],
    sender: SessionSender,
    front: Front,
    *,
    model: str | None = None,
    key: str | None = None,
    caching: bool = False,
) -> Run:
    """Send what *sender* says, when it says, to the servers at *urls*; the router of *front* says which for each
    turn. Otherwise as `serve_urls`. Raises `BadInput` also if a server does not tell which tokens it generates."""
    servers = {name: Server(url, key) for name, url in urls.items()}
    return asyncio.run(_serve_in_turns(servers, sender, front, model, wording(caching)))


async def _serve_in_turns(
    servers: Mapping[str, Server], sender: SessionSender, front: Front, model: str | None, how: Wording
) -> Run:
    async with closing(*servers.values()):
        models = {name: await model_of(server, model) for name, server in servers.items()}
        front.zero = time.monotonic() + LEAD

        async def ask(planned: Planned) -> tuple[Served, Server]:
            said: Any = sender.requests[planned.id]
            out = await _routed(servers, models, front, planned, said, how, ids=[])
            return out, servers[front.at[planned.id].name]

        served, lateness = await in_turns(sender, front.zero, how, ask)
    return Run(served, [], lateness, [], front.now())


async def _routed(
    servers: Mapping[str, Server],
    models: Mapping[str, str],
    front: Front,
    planned: Planned,
    said: TokenRequest,
    how: Wording,
    ids: list[int] | None = None,
) -> Served:
    """Send one request, which the router sees as *said*, to the server that it names."""
    came = front.now()
    request = TokenRequest(said.id, came, said.tokens, slo=said.slo, work=said.work, **said.terms)
    task = await front.place(request)
    name, queued = front.at[planned.id].name, front.now()
    out = Served(planned.id, came, planned.prompt, planned.output, queued, "failed", ids=ids)
    heard: Callable[[int], None] = lambda tokens: front.heard(task, tokens)  # noqa: E731
    try:
        return await asked(servers[name], models[name], planned, out, front.zero, how, heard)
    finally:
        front.over(task)


async def _serve(
    servers: Mapping[str, Server],
    requests: list[Planned],
    front: Front,
    shown: Mapping[int, TokenRequest],
    model: str | None,
    how: Wording,
) -> Run:
    async with closing(*servers.values()):
        models = {name: await model_of(server, model) for name, server in servers.items()}
        front.zero = time.monotonic() + LEAD

        async def one(planned: Planned) -> Served:
            await asyncio.sleep(max(0.0, front.zero + planned.arrival - time.monotonic()))
            return await _routed(servers, models, front, planned, shown[planned.id], how)

        served = await all_of(one(planned) for planned in requests)
    lateness = [s.arrival - p.arrival for s, p in zip(served, requests, strict=True)]
    return Run(served, [], lateness, [], front.now())


def named(urls: Sequence[str], workers: Sequence[Worker], where: str) -> dict[str, str]:
    """The URL of each of *workers*, in their order. Raises `BadInput` unless there is one for each of one language
    model."""
    names = [worker.name for worker in workers]
    if len({worker.stage.name for worker in workers}) != 1 or not all(isinstance(w, TokenWorker) for w in workers):
        what = "servers are asked for one language model"
        raise BadInput(what, where=where, right="a pipeline of one llm module, with a worker for each server")
    if len(urls) != len(names):
        what = f"{len(urls)} servers for {len(names)} workers ({', '.join(names)})"
        raise BadInput(what, where="--url", right="one for each worker of the deployment, in their order")
    return dict(zip(names, urls, strict=True))
