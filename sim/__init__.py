"""Simulated execution: the serving loop on a SimPy calendar, with measured times.

==================  ====================================================================================
`SimExecutor`       runs batches in simulated time; workers are lanes that contend on shared devices
`TableTiming`       batch times from plain lists, for tests and for queueing theory
`Calendar`          SimPy's environment, entered by absolute time
==================  ====================================================================================
"""

from .calendar import Calendar, Timer
from .executor import Delay, Lane, SimExecutor, Timing
from .timing import TableTiming

__all__ = ["Calendar", "Delay", "Lane", "SimExecutor", "TableTiming", "Timer", "Timing"]
