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
`TokenTable`        seconds of the steps of a language model: prefill, decode, both at once
`TOKEN_KINDS`       the kinds of such models, and what each is
`architecture`      the shape of a language model by its name; `kv_blocks` is the memory that it leaves for the rest
==================  ====================================================================================

>>> names()[:2]
['a6000/opt-13b-tp1', 'a6000/opt-30b-tp2']
>>> sd = load("rtx4090/sd15-512")
>>> sd.estimate("scheduler")("unet", 4)
0.06900042770920613
>>> sd.table("unet", "measured").sizes
(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)
"""

from . import costs
from .architectures import Architecture, architecture, kv_blocks
from .basics import Source
from .profile import Profile, load, names
from .schema import KINDS, Cost, Kind, ProfileFile, Quantiles, Session
from .table import BatchTable, LatencyTable, OutOfRange
from .tokendata import TOKEN_KINDS, TokenData, TokenKind
from .tokens import TokenTable

__all__ = [
    "KINDS",
    "TOKEN_KINDS",
    "Architecture",
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
    "TokenData",
    "TokenKind",
    "TokenTable",
    "architecture",
    "costs",
    "kv_blocks",
    "load",
    "names",
]
