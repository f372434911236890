"""The serving loop and the words that every other package uses.

Nothing here knows whether time is simulated or real: the loop takes events in (a request arrived, a batch
ended, a timer rang) and gives commands out (run this batch, wake me then) through an `Executor`.

==================  ====================================================================================
`Request`           what a client sends: its work, its deadline, and how it ended
`Task`              a request's stay at one stage, which is what a policy schedules
`Module`            a compute stage as users know it (UNet, VAE decoder, prefill, ...)
`Pipeline`          the graph of modules that a request passes through
`Edge`              a way in that graph that is taken with a probability
`Policy`            decides what a worker runs next; written once, for both worlds
`Decision`          what a policy answers
`WorkerView`        what a policy may see
`Executor`          runs batches and keeps the clock; simulated or real
`ServingLoop`       admission, queues, hand-over, drops and records, written once
==================  ====================================================================================
"""

from .errors import BadInput, LawBroken, ServeTwinError
from .loop import ServingLoop
from .metrics import Summary
from .pipeline import Edge, Module, Pipeline, Stage
from .records import Recorder, RunFolder
from .request import Outcome, Request, Task
from .seam import Batch, Decision, Executor, Handle, Policy, Repeat, WorkerView
from .slo import SLO, AbsoluteSLO, FactorSLO
from .worker import Worker

__all__ = [
    "SLO",
    "AbsoluteSLO",
    "BadInput",
    "Batch",
    "Decision",
    "Edge",
    "Executor",
    "FactorSLO",
    "Handle",
    "LawBroken",
    "Module",
    "Outcome",
    "Pipeline",
    "Policy",
    "Recorder",
    "Repeat",
    "Request",
    "RunFolder",
    "ServeTwinError",
    "ServingLoop",
    "Stage",
    "Summary",
    "Task",
    "Worker",
    "WorkerView",
]
