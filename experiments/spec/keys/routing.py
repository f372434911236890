"""What an experiment file says of which of several workers a request goes to (docs/guides/routing.md), and of how
prompts get from workers that prefill to workers that decode (docs/guides/prefill-decode.md)."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ...registry import router_registry
from .field_types import NotNegative, Positive, Strict, Wait


class RouterSpec(Strict):
    """A router by name, entry point, ``package.module:Class`` or file, and its parameters. What it sees of workers is
    up to *stale* seconds old."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    stale: NotNegative = 0.0


def _kind_of_router(value: Any) -> str:
    return "mapping" if isinstance(value, dict | RouterSpec) else "name"


Routing = Annotated[
    Annotated[str, Tag("name")] | Annotated[RouterSpec, Tag("mapping")], Discriminator(_kind_of_router)
]


class HandoverSpec(Strict):
    """How KV gets from workers of the *role* "prefill" to those of the role "decode", and which of these decodes.

    The KV of a prompt takes *latency* seconds, and its bytes at *gb_per_s* (10^9 bytes a second), of which *source*
    says where it comes from; without *gb_per_s* it takes what the profiles of the prefill workers say (their cost
    `kv.handover`). *bytes_per_token* is by default that of the profile's model at two bytes a number. *link*: one
    prompt is sent at a time from each "prefill" worker, to each "decode" worker, on each "pair" of them, or by all
    together ("shared"); or ("unlimited") none waits for another. Without *overlap* a prefill worker computes nothing
    while it sends. *first_token*: a request's first token is the one that its prefill gives ("prefill", as in
    DistServe and Splitwise), or comes from the first step of the worker that decodes ("decode", as with vLLM's
    proxies, which throw the former away). *router* picks the worker that decodes, when the prompt stands; one that
    keeps a central queue picks it when one has room.
    """

    # Slower links, and longer waits, end in times that a number cannot tell from those of steps.
    gb_per_s: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)] | None = None
    latency: Wait = 0.0
    bytes_per_token: Positive | None = None
    source: Annotated[str, Field(min_length=1)] | None = None
    link: Literal["prefill", "decode", "pair", "shared", "unlimited"] = "prefill"
    overlap: bool = True
    first_token: Literal["prefill", "decode"] = "prefill"
    router: Routing = "least_loaded"


def complete(name: str, params: dict[str, Any], stale: float) -> Routing:
    """The router of that *name*, its default *params* filled in; its name alone where that says all. Raises
    `BadInput`."""
    full = router_registry.complete(name, params)
    return name if not full and not stale else RouterSpec(name=name, params=full, stale=stale)
