"""The serving loop and the types that every other package uses.

Nothing here knows whether time is simulated or real: the loop takes events in (a request arrived, a batch
ended, a timer rang) and gives commands out (run this batch, wake me then) through an `Executor`. Begin with
`request` and `policy`, then `serving`.

==========================  ===============================================================================
`request`, `pipeline`       requests, their shapes, and tasks; the graph of modules
`policy`, `parameters`      `Policy`: what it sees (`WorkerView`) and says (`Decision`); its parameters
`routing`, `slo`            which worker a request goes to, and what it is owed
`records`, `metrics`        the files of a run (`json_lines`), and its summary; `group_metrics`: by class and tenant
`random_streams`            random numbers, a stream per purpose
`arithmetic`                sums of floats that come out alike on every Python
`errors`                    what reaches a user; the invariants by number
`installed`                 which packages of the optional extras are there
`llm`                       all of that for language models; `llm.serving`: their engines
`isolation`                 keeps a policy to reading what it is shown and to answering
`files`                     files that a user names
`processes`                 none computes on, and no folder is left, when the process that started it is killed
`serving`                   the loop, its workers, and what executors are asked
`scaling`, `fleets`         autoscalers: what they see and say; the replicas that come and go
`faults`                    workers that fail, slow down and come back; requests that are sent again
`groups`                    workers that share the devices of a group out among several batches
`invariants`                docs/reference/invariants.md, checked while a run goes and on its records
`testing`                   the test kit: policies asked by hand, played through scenarios, held to their contract
==========================  ===============================================================================
"""

from .errors import BadInput, InvariantBroken, ServeTwinError
from .metrics import Summary
from .pipeline import Edge, Module, Pipeline, Stage
from .policy import Batch, Decision, Policy, Repeat, WorkerView
from .records import Recorder, RunFolder
from .request import Outcome, Request, Shape, Task
from .serving.batch_worker import BatchWorker
from .serving.executor import Executor, Handle
from .serving.loop import ServingLoop
from .serving.worker import Worker
from .slo import SLO, AbsoluteSLO, FactorSLO

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
    "Shape",
    "Stage",
    "Summary",
    "Task",
    "Worker",
    "WorkerView",
]
