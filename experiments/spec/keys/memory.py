"""What an experiment file says of a card whose memory several models share (docs/guides/placement.md)."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from .field_types import NotNegative, Strict

Amount = Annotated[float, Field(gt=0, le=1e6)]


class CardSpec(Strict):
    """The *devices* named, each a model with its profile, are one card. Its *gib* (those of the profiles, if not
    said) hold their *weights*, in GB (1e9 bytes); of language models they are as the profile says, if not said here.
    They come from the host at *gb_per_s*; *source* says where these numbers come from. The models in *pinned* never
    go, those in *loaded* are there when the run begins (as many as there is room for, in the order of *devices*, if
    not said). What came stays for *stay* seconds, as long as it has work.
    """

    devices: Annotated[list[str], Field(min_length=2)]
    gb_per_s: Annotated[float, Field(ge=1e-6, le=1e6)]
    source: Annotated[str, Field(min_length=1)]
    gib: Amount | None = None
    weights: dict[str, Amount] = Field(default_factory=dict)
    pinned: list[str] = Field(default_factory=list)
    loaded: list[str] | None = None
    stay: NotNegative = 0.0

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same of devices with other *names*."""
        changed = {
            "devices": [names[name] for name in self.devices],
            "weights": {names[name]: gb for name, gb in self.weights.items()},
            "pinned": [names[name] for name in self.pinned],
            "loaded": None if self.loaded is None else [names[name] for name in self.loaded],
        }
        return self.model_copy(update=changed)
