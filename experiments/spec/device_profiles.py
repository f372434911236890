"""The profiles of an experiment's devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servetwin.core import BadInput

from .experiment import Experiment

if TYPE_CHECKING:
    from servetwin.profiles import Profile


def load_profiles(experiment: Experiment) -> dict[str, Profile]:
    """The profile of each device."""
    from servetwin.profiles import load

    profiles = {}
    for device, name in experiment.deployment.devices.items():
        try:
            profiles[device] = load(name)
        except BadInput as error:
            where = f"deployment.devices.{device}" + (f": {error.where}" if error.where else "")
            raise BadInput(error.what, where=where, right=error.right) from None
    return profiles
