"""The profiles of an experiment's devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from servetwin.core import BadInput

from .experiment import Experiment

if TYPE_CHECKING:
    from servetwin.profiles import Profile


def not_measured(profiles: Iterable[Profile]) -> list[str]:
    """A line for each of *profiles* that is imported or estimated: what it stands on, and how far that is known to be
    off."""
    from servetwin.profiles import verdict

    return [*dict.fromkeys(line for profile in profiles if (line := verdict.basis(profile.data)))]


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
