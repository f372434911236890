"""vLLM's asynchronous scheduling on a CPU, where vLLM itself gives it up: for tests, and for trying campaigns out.

Everything that schedules is vLLM's own: its configuration, ``AsyncScheduler``, ``EngineCore.step_with_batch_queue``
and the model runner's asynchronous path. Three things are put in by `force`: the platform for CPUs no longer switches
the option off; CUDA's streams and events, of which the model runner wants some, are dummies; and the model computes
in a thread of its own, in order, as kernels do on a GPU, so that a step really runs while the next one is decided.
How long steps take then says nothing of any GPU, nor of vLLM on a CPU.

Workers that are processes of their own (tensor parallelism) are forked, so that they have all of this as well; they
compute a step while they launch it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def _no_stream(stream: object) -> Iterator[None]:
    yield


def force() -> None:
    """Let vLLM engines of this process schedule asynchronously on the CPU if they are told to."""
    import torch
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.executor.uniproc_executor import UniProcExecutor
    from vllm.v1.outputs import AsyncModelRunnerOutput
    from vllm.v1.serial_utils import run_method

    if getattr(UniProcExecutor, "_servetwin_forced", False):
        return
    if torch.cuda.is_available():
        raise RuntimeError("there is a GPU: nothing needs to be forced")
    plain = CpuPlatform.check_and_update_config.__func__

    def keep(cls: Any, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        plain(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # the platform wants them to be spawned

    CpuPlatform.check_and_update_config = classmethod(keep)
    cuda: Any = torch.cuda
    cuda.Event, cuda.Stream, cuda.current_stream, cuda.stream = _Event, _Stream, _Stream, _no_stream

    waiting = UniProcExecutor.collective_rpc
    device = ThreadPoolExecutor(1, "device")

    def run(worker: Any, method: Any, args: Any, kwargs: Any, single: bool) -> Any:
        result = run_method(worker, method, args, kwargs)
        if isinstance(result, AsyncModelRunnerOutput):
            result = result.get_output()
        return result if single else [result]

    def collective_rpc(
        self: Any,
        method: Any,
        timeout: float | None = None,
        args: tuple = (),
        kwargs: dict | None = None,
        non_block: bool = False,
        single_value: bool = False,
    ) -> Any:
        ahead = self.vllm_config.scheduler_config.async_scheduling
        if not (non_block and ahead):
            return waiting(self, method, timeout, args, kwargs, non_block, single_value)
        made: Future = device.submit(run, self.driver_worker, method, args, kwargs or {}, single_value)
        return made

    UniProcExecutor.collective_rpc = collective_rpc
    UniProcExecutor._servetwin_forced = True
