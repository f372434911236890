"""Simulated execution: the serving loop on a SimPy calendar, with measured times. Begin with `executor`.

==================  =====================================================================================
`calendar`          SimPy's environment, entered by absolute time
`executor`          `SimExecutor`: workers are lanes that contend on shared devices
`batch_lane`        a worker's place on a device; `pool_lane` is that of a pool of threads
`timing`            what a batch demands of host and device: `MeasuredTiming`, or `TableTiming` for tests
`measured`          from profiles to simulated time: which measured terms count
`noise`             durations drawn from what was measured
`device_sharing`    workers on one device whose overlap nobody measured: refused, or sharing in time
`out_of_range`      how often, and how far, a run went beyond what its profiles know
`llm`               lanes of LLM engines, and the short way of a lone one
==================  =====================================================================================
"""

from .batch_lane import Lane, Rate, Rates
from .calendar import Calendar, Timer
from .executor import Delay, SimExecutor
from .timing import Demand, MeasuredTiming, TableTiming, Timing

__all__ = [
    "Calendar",
    "Delay",
    "Demand",
    "Lane",
    "MeasuredTiming",
    "Rate",
    "Rates",
    "SimExecutor",
    "TableTiming",
    "Timer",
    "Timing",
]
