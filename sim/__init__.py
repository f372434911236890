"""Simulated execution: the serving loop on a SimPy calendar, with measured times.

==================  ====================================================================================
`SimExecutor`       runs batches in simulated time; workers are lanes that contend on shared devices
`MeasuredTiming`    batch times composed of measured terms
`TableTiming`       batch times from plain lists, for tests and for queueing theory
`Calendar`          SimPy's environment, entered by absolute time
==================  ====================================================================================
"""

from .calendar import Calendar, Timer
from .executor import Delay, SimExecutor
from .lane import Lane, Rate, Rates
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
