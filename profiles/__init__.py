"""Measured latencies of models on devices, and the tables that read them. Begin with `profile`, then `schema`.

====================  ===========================================================================================
`profile`             `load` gives a `Profile`: tables, estimates, costs and `digest` of one model on one device
`schema`              what a profile file may say; `csv_profile` reads plain CSV files
`shapes`              times of requests of other sizes than the profile's own, from those that were measured
`degrees`             times where several devices compute each step together
`yaml_writer`         profile files as text
`costs_page`          the registry of costs as text
`tables`              what profiles are made of: tables of seconds, single costs, and how files are read
`verdict`             whether a profile can be trusted
`llm`                 tables of engine steps of language models; their architectures
`importing`           makes profiles of language models without a GPU: other tools' tables, CSV files, formulas
`neustream_artifact`  makes profiles of what the NeuStream artifact published
`data`                the profiles that come with ServeTwin, a folder per device
====================  ===========================================================================================

>>> [name for name in names() if name.startswith("a6000/opt-")][:2]
['a6000/opt-13b-tp1', 'a6000/opt-30b-tp2']
>>> sd = load("rtx4090/sd15-512")
>>> sd.estimate("scheduler")("unet", 4)
0.06900042770920613
>>> sd.table("unet", "measured").sizes
(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)
"""

from .llm.architectures import Architecture, architecture, kv_blocks
from .llm.schema import TOKEN_KINDS, TokenData, TokenKind
from .llm.step_table import TokenTable
from .profile import Profile, files, load, names
from .schema import KINDS, Kind, ProfileFile
from .tables import costs
from .tables.cost import Cost, Quantiles, Session
from .tables.field_types import Source
from .tables.latency_table import BatchTable, LatencyTable, OutOfRange

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
    "files",
    "kv_blocks",
    "load",
    "names",
]
