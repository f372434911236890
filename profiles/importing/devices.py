"""Devices by name.

>>> device("h100_sxm").memory_gib
79.18
>>> device("RTX4090").name  # as other tools write it
'NVIDIA GeForce RTX 4090'
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from servetwin.core import BadInput

from ..tables.field_types import Positive, Strict, Text
from ..tables.loading import check, read_mapping

DEVICES = Path(__file__).with_name("devices.yaml")


class KnownDevice(Strict):
    """*flops* and *bandwidth* are peaks per second (dense bf16; bytes of memory), *memory_gib* is what the driver
    reports, *link* bytes per second to the other devices of a host, in one direction."""

    name: Text
    flops: Positive
    bandwidth: Positive
    memory_gib: Positive
    link: Positive


@functools.cache
def devices() -> dict[str, KnownDevice]:
    """All of them."""
    return {n: check(v, KnownDevice, where=f"{DEVICES.name}: {n}") for n, v in read_mapping(DEVICES).items()}


def key_of(name: str) -> str:
    """The key in `devices` of a device that somebody calls *name*. Raises `BadInput` listing the known ones."""
    plain = _plain(name)
    alike = [key for key in devices() if plain.startswith(_plain(key))]
    if not alike or any(variant in plain for variant in OTHERS):
        raise BadInput(f"unknown device {name!r}", where="--device", right=f"one of {', '.join(devices())}")
    return max(alike, key=len)


def device(name: str) -> KnownDevice:
    """The device that somebody calls *name*. Raises `BadInput` listing the known ones."""
    return devices()[key_of(name)]


#: Variants of the known devices that are other devices.
OTHERS = ("pcie", "nvl", "40g", "maxq")


def _plain(name: str) -> str:
    """A name without what makers and tools put around it: NVIDIA GeForce RTX 4090, RTX4090, h100_sxm."""
    return re.sub(r"[^a-z0-9]+|nvidia|geforce|rtx", "", name.lower())
