"""The test kit of policies: views in a line, scenarios, whole runs under the invariants, and the contract.

Begin with `by_hand` for a single decision and `timeline` for a whole run. As fixtures these names are there wherever
ServeTwin is installed (`servetwin.pytest_plugin`); `servetwin.testing` has whole simulated runs besides.

================  =============================================================================================
`jobs`            requests as a test says them: `Job`, `Prompt`
`estimates`       what batches take: a number, a table, a function
`by_hand`         `FakeWorker`, `FakeEngine`, `worker_view`, `engine_view`: one decision after the other
`timeline`        `play`: a scenario from the first arrival to the last end, under all invariants
`schedule`        what ran when in it, and that as text
`contract`        `assert_policy_contract`: what every policy must keep to, and whether it does
`asked_contract`  the same of routers and autoscalers
`scenarios`       what a policy is tried on for that
`decision_log`    `record`, `DecisionLog`: what was decided, kept in a file, and asked again
`strategies`      workloads, systems and policies for hypothesis (extra ``servetwin[test]``)
`conduct`         what its code does while it is asked: clocks, randomness, files, state that objects share
`promises`        whether what it said that it would say again is what it says
================  =============================================================================================
"""

from .by_hand import EngineStep, FakeEngine, FakeWorker, engine_view, worker_view
from .contract import ContractBroken, assert_policy_contract
from .decision_log import DecisionLog, record
from .jobs import Job, Prompt
from .schedule import Bar, Played
from .timeline import System, play

__all__ = [
    "Bar",
    "ContractBroken",
    "DecisionLog",
    "EngineStep",
    "FakeEngine",
    "FakeWorker",
    "Job",
    "Played",
    "Prompt",
    "System",
    "assert_policy_contract",
    "engine_view",
    "play",
    "record",
    "worker_view",
]
