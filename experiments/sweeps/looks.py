"""One run on several cores behind a router that looks every so many seconds: processes that keep their replicas.

Each process draws and routes all requests, serves some replicas, and tells the others at each look what the router
sees of them (`servetwin.sim.fleets.epochs`): by way of this process, over connections of this machine. So there are
as many processes at once as there are pieces, which no cluster promises.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from threading import Thread
from typing import TYPE_CHECKING

from servetwin.sim.fleets.epochs import Sight

from ..assembly.build import build
from ..assembly.inputs import inputs_of
from ..provenance.policy_code import as_loaded
from ..spec.experiment import Experiment
from ..splitting.apart import some_side_by_side
from .pieces import Piece, in_processes

if TYPE_CHECKING:
    from servetwin.sim.fleets.epochs import Exchange

#: Where a process finds the one that has started it, and what it says to be let in.
Place = tuple[tuple[str, int], bytes]


class Hub:
    """Passes on what *many* processes tell at each look: each gets what all of them told, in the order of their
    numbers. When one leaves, all connections are closed."""

    def __init__(self, many: int) -> None:
        self._many, self._over = many, False
        key = os.urandom(32)
        self._listener = Listener(("localhost", 0), backlog=many, authkey=key)
        self._address: tuple[str, int] = self._listener.address
        self.place: Place = self._address, key
        self._connections: dict[int, Connection] = {}
        self._thread = Thread(target=self._serve, name="looks", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while len(self._connections) < self._many:
                with suppress(AuthenticationError, OSError, EOFError):  # a stranger, or `close`
                    connection = self._listener.accept()
                    self._connections[connection.recv()] = connection
                    _at_once(connection)
                if self._over:
                    return
            connections = [self._connections[number] for number in range(self._many)]
            while True:
                told = [connection.recv() for connection in connections]
                for connection in connections:
                    connection.send(told)
        except (OSError, EOFError):
            pass  # one has left: it has served all, or cannot
        finally:
            for connection in self._connections.values():
                connection.close()

    def close(self) -> None:
        """Nobody tells anything any more."""
        self._over = True
        with suppress(OSError):  # who waits in `accept` does not hear that its socket is closed: somebody comes
            socket.create_connection(self._address, timeout=1.0).close()
        self._listener.close()
        self._thread.join(5.0)


def _at_once(connection: Connection) -> None:
    """Nothing that is sent waits for more to be sent."""
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _exchange(connection: Connection) -> Exchange:
    def exchange(sights: list[Sight]) -> list[Sight]:
        connection.send([tuple(sight) for sight in sights])
        return [Sight(*sight) for piece in connection.recv() for sight in piece]

    return exchange


@as_loaded()
def simulate(number: int, task: tuple[Experiment, range, Place]) -> Piece | None:
    """Simulate some replicas of an experiment: what other processes do. None: this one cannot, or another has left
    before the end."""
    experiment, mine, (address, key) = task
    run, inputs = build(experiment), inputs_of(experiment)
    summary = run.recorder.summary
    try:
        with Client(address, authkey=key) as connection:
            _at_once(connection)
            connection.send(number)
            held = some_side_by_side(run, summary, mine, _exchange(connection))
    except (OSError, EOFError):
        return None
    return None if held is None else Piece(number, summary, {}, held, inputs)


def with_looks(tasks: Sequence[tuple[Experiment, range]]) -> list[Piece] | None:
    """What each of *tasks* comes to, all at once in processes of this machine; None if one cannot be served so."""
    with closing(Hub(len(tasks))) as hub:
        found = list(in_processes(simulate, [(*task, hub.place) for task in tasks]))
    pieces = [piece for piece in found if piece is not None]
    return pieces if len(pieces) == len(tasks) else None
