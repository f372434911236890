"""Running points on a cluster that is there already, through joblib's back-ends for Dask and Ray.

========================  =======================================
``tcp://host:8786``       the scheduler of a Dask cluster (also ``tls://``, ``ucx://``, ``dask://host:8786``)
``ray://host:10001``      a Ray cluster, as its client
``ray``                   the Ray cluster that this machine is part of, or else a local one
========================  =======================================

The workers need the same version of ServeTwin, and the profile, trace and policy files that an experiment names.
Rows come back to this process, which alone writes tables and cache: results are the same as on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from servetwin.core import BadInput

EXTRA = "pip install 'servetwin[cluster]'"


@contextmanager
def running_on(address: str | None) -> Iterator[None]:
    """Within this context joblib runs on the cluster at *address*; None is this machine."""
    if address is None:
        yield
    elif address == "ray" or address.startswith("ray://"):
        with _ray(None if address == "ray" else address):
            yield
    elif address.split("://")[0] in ("tcp", "tls", "ucx", "dask") and "://" in address:
        with _dask(address.replace("dask://", "tcp://")):
            yield
    else:
        raise BadInput(
            f"{address!r} is no cluster", where="--cluster", right="tcp://host:8786, ray://host:10001 or ray"
        )


@contextmanager
def _dask(address: str) -> Iterator[None]:
    from joblib import parallel_config

    try:
        from distributed import Client
    except ImportError:
        raise BadInput("Dask is not installed", where="--cluster", right=EXTRA) from None
    try:
        client = Client(address, timeout="10s")  # type: ignore[no-untyped-call, unused-ignore]
    except OSError:
        raise BadInput(f"no Dask scheduler answers at {address}", where="--cluster", right="its address") from None
    with client, parallel_config(backend="dask", client=client, wait_for_workers_timeout=30):
        yield


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    from joblib import parallel_config

    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise BadInput("Ray is not installed", where="--cluster", right=EXTRA) from None
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        raise BadInput(f"no Ray cluster answers at {address}", where="--cluster", right="its address") from None
    register_ray()
    try:
        with parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()
