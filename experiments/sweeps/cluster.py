"""Running points on a cluster that is there already, of Dask or Ray.

========================  =======================================
``tcp://host:8786``       the scheduler of a Dask cluster (also ``tls://``, ``ucx://``, ``dask://host:8786``)
``ray://host:10001``      a Ray cluster, as its client
``ray``                   the Ray cluster that this machine is part of, or else a local one
========================  =======================================

The workers need the same version of ServeTwin, and the profile, trace and policy files that an experiment names: each
says what its row is made of, and another row than was asked for is refused. Rows come back to this process, which
alone writes tables and cache: results are the same as on one machine. All points go to the cluster, be it of one
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from itertools import islice
from typing import Any

from servetwin.core import BadInput, ServeTwinError

EXTRA = "pip install 'servetwin[cluster]'"

#: Calls a function with the number and the value of each of the given things, on the cluster; results as they come.
Runner = Callable[[Callable[[int, Any], Any], Sequence[Any]], Iterator[Any]]

_current: ContextVar[Runner | None] = ContextVar("cluster", default=None)

#: Tasks that Ray holds at once for each of its processors.
_AHEAD = 4


def current() -> Runner | None:
    """What runs points on the cluster of this context; None if that is this machine."""
    return _current.get()


@contextmanager
def running_on(address: str | None) -> Iterator[None]:
    """Within this context points run on the cluster at *address*; None is this machine."""
    if address is None:
        yield
    elif address == "ray" or address.startswith("ray://"):
        with _ray(None if address == "ray" else address) as runner:
            yield from _through(runner)
    elif address.split("://")[0] in ("tcp", "tls", "ucx", "dask") and "://" in address:
        with _dask(address.replace("dask://", "tcp://")) as runner:
            yield from _through(runner)
    else:
        raise BadInput(
            f"{address!r} is no cluster", where="--cluster", right="tcp://host:8786, ray://host:10001 or ray"
        )


def _through(runner: Runner) -> Iterator[None]:
    token = _current.set(runner)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def _dask(address: str) -> Iterator[Runner]:
    try:
        from distributed import Client, as_completed
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise BadInput("Dask is not installed", where="--cluster", right=EXTRA) from None
    try:
        make: Any = Client
        client = make(address, timeout="10s")
    except OSError:
        raise BadInput(f"no Dask scheduler answers at {address}", where="--cluster", right="its address") from None
    except ValueError as error:
        what = f"{address!r} is no address of a Dask scheduler: {error}"
        raise BadInput(what, where="--cluster", right="tcp://host:8786") from None

    def runner(function: Callable[[int, Any], Any], things: Sequence[Any]) -> Iterator[Any]:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise ServeTwinError(f"the Dask cluster at {address} has no worker") from None
        futures = client.map(function, range(len(things)), things, pure=False, retries=0)
        try:
            completed: Any = as_completed
            for _, found in completed(futures, with_results=True):
                yield found
        except KilledWorker:
            what = "a worker of the cluster was killed, perhaps for want of memory"
            raise ServeTwinError(f"{what}; what had finished is kept: run the same again") from None
        except FutureCancelledError:
            raise ServeTwinError("the cluster went away; what had finished is kept: run the same again") from None
        finally:
            client.cancel(futures)

    with client:
        yield runner


@contextmanager
def _ray(address: str | None) -> Iterator[Runner]:
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise BadInput("Ray is not installed", where="--cluster", right=EXTRA) from None
    ours = not ray.is_initialized()  # one that is there already stays
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        raise BadInput(f"no Ray cluster answers at {address}", where="--cluster", right="its address") from None
    except (ValueError, RuntimeError) as error:  # a wrong address, or a Ray without its client
        said = " ".join(str(error).split()).partition(". ")[0]
        what = f"{address or 'ray'} cannot be used: {said}"
        raise BadInput(what, where="--cluster", right="ray://host:10001, or ray") from None

    def runner(function: Callable[[int, Any], Any], things: Sequence[Any]) -> Iterator[Any]:
        task: Any = ray.remote(lambda number, thing: function(number, thing))  # Ray takes functions only
        waiting = iter(enumerate(things))
        most = max(1, int(_AHEAD * ray.cluster_resources().get("CPU", 1.0)))
        under_way = [task.remote(i, thing) for i, thing in islice(waiting, most)]
        try:
            while under_way:
                (done,), under_way = ray.wait(under_way, num_returns=1)
                under_way += [task.remote(i, thing) for i, thing in islice(waiting, 1)]
                yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, ServeTwinError) else error) from None
        except ray.exceptions.WorkerCrashedError:
            what = "a worker of the cluster was killed, perhaps for want of memory"
            raise ServeTwinError(f"{what}; what had finished is kept: run the same again") from None
        finally:
            for one in under_way:
                ray.cancel(one)

    try:
        yield runner
    finally:
        if ours:
            ray.shutdown()
