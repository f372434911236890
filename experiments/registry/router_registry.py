"""Finding a router by what the user calls it (`by_name`): a file in servetwin.policies.routing, or an entry point of
the group "servetwin.routers", among others."""

from __future__ import annotations

from servetwin.core.routing import Router
from servetwin.policies import routing

from .by_name import ByName

_ROUTERS: ByName[Router] = ByName(Router, routing, "servetwin.routers", "router")

router_names = _ROUTERS.names
code_of = _ROUTERS.code_of
complete = _ROUTERS.complete
make = _ROUTERS.make
describe = _ROUTERS.describe


def draws(name: str) -> bool:
    """Whether the router of that name draws at random, as it says itself."""
    return bool(code_of(name).policy.draws)
