"""The serving loop and the types that every other package uses.

Nothing here knows whether time is simulated or real: the loop takes events in (a request arrived, a batch
ended, a timer rang) and gives commands out (run this batch, wake me then) through an `Executor`. Begin with
`request` and `policy`, then `loop`; `worker` says what is done for one stage.

==========================  ===============================================================================
`request`, `pipeline`       requests and tasks; the graph of modules
`branching`                 which path a request takes where its pipeline branches
`policy`, `parameters`      `Policy`: what it sees (`WorkerView`) and says (`Decision`); its parameters
`executor`                  what runs batches and keeps the clock: `Executor`
`loop`                      `ServingLoop`: admission, transfer, drops and outcomes
`client`                    sends the requests of a source to it
`worker`, `batch_worker`    what the loop and a worker ask of each other; a worker with one batch in flight
`pool`                      a worker that is a pool of threads
`dispatch`                  asks routers, and keeps the requests of a central queue
`routing`, `budget`, `slo`  which worker a request goes to, how an SLO is shared out, what it is
`records`, `metrics`        the files of a run, and its summary; `group_metrics`: by class and tenant
`random_streams`            random numbers, a stream per purpose; `errors`: what reaches a user
`installed`                 which packages of the optional extras are there
`testing`                   the test kit: policies asked by hand, played through scenarios, held to their contract
`llm`                       all of that for engines of language models
`invariants`                docs/reference/invariants.md, checked while a run goes and on its records
==========================  ===============================================================================
"""

from .batch_worker import BatchWorker
from .errors import BadInput, InvariantBroken, ServeTwinError
from .executor import Executor, Handle
from .loop import ServingLoop
from .metrics import Summary
from .pipeline import Edge, Module, Pipeline, Stage
from .policy import Batch, Decision, Policy, Repeat, WorkerView
from .records import Recorder, RunFolder
from .request import Outcome, Request, Task
from .slo import SLO, AbsoluteSLO, FactorSLO
from .worker import Worker

__all__ = [
    "SLO",
    "AbsoluteSLO",
    "BadInput",
    "Batch",
    "BatchWorker",
    "Decision",
    "Edge",
    "Executor",
    "FactorSLO",
    "Handle",
    "InvariantBroken",
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
