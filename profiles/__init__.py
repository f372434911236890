"""Measured latencies of models on devices, and the tables that read them.

==================  ====================================================================================
`names`             the profiles that come with ServeTwin
`load`              a profile by its name, or from a YAML file
`Profile`           what was measured of one model on one device: tables, estimates, costs, `digest`
`LatencyTable`      seconds by batch size: exact where measured, straight lines between, never beyond
`BatchTable`        the same for a quantity that may be negative, or is no time
`OutOfRange`        a batch size was asked for that nobody measured
`Cost`              a measured term that is no latency table: a hand-over, a ratio, a spread
`KINDS`             the kinds of tables, and what each is
==================  ====================================================================================

>>> names()[:2]
['h100/sd15-512', 'rtx4090/dit-s2-256']
>>> sd = load("rtx4090/sd15-512")
>>> sd.estimate("scheduler")("unet", 4)
0.06900042770920613
>>> sd.table("unet", "measured").sizes
(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)
"""

from .profile import Profile, load, names
from .schema import KINDS, Cost, Kind, ProfileFile, Quantiles, Session, Source
from .table import BatchTable, LatencyTable, OutOfRange

__all__ = [
    "KINDS",
    "BatchTable",
    "Cost",
    "Kind",
    "LatencyTable",
    "OutOfRange",
    "Profile",
    "ProfileFile",
    "Quantiles",
    "Session",
    "Source",
    "load",
    "names",
]
