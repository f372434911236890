"""Simulated execution: the serving loop on a SimPy calendar, with measured times. Begin with `executor`.

==================  =====================================================================================
`executor`          `SimExecutor`: workers are lanes that contend on shared devices
`batch_lane`        a worker's place on a device; `pool_lane` is that of a pool of threads
`group_lane`        a group of devices, several of whose batches run at once
`faulty_lanes`      lanes of workers and engines that may fail, slow down and stand still
`measured`          from profiles to simulated time: which measured terms count
`device_sharing`    workers on one device whose overlap nobody measured: refused, or sharing in time
`weights`           models that share the memory of a card: which are there, and swaps
`transports`        how long requests are under way between workers
`time`              the calendar, what a batch demands, noise
`llm`               lanes of LLM engines, and the short way of a lone one
`fleets`            the short way of replicas behind a router that looks at how they stand
==================  =====================================================================================
"""

from .batch_lane import Lane, Rate, Rates
from .executor import SimExecutor
from .time.calendar import Calendar, Timer
from .time.timing import Demand, MeasuredTiming, TableTiming, Timing
from .transports import Delay

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
