"""The diffusion models that come with ServeTwin, a family a file, found by its file. Begin with `dit`, the shortest.

======================  ====================================================================
`stable_diffusion`      Stable Diffusion v1.5
`dit`                   DiT-S/2 and DiT-XL/2
`palette`               Palette, image to image
`sdxl`                  Stable Diffusion XL (its base model)
`sdxl_refiner`          the same, followed by its refiner
`flux`                  FLUX.1 dev and schnell
`sd3`                   Stable Diffusion 3 medium
`pixart`                PixArt-Sigma
`wan`                   Wan 2.1, videos
`shared_networks`       what several of them have in common
======================  ====================================================================

`KINDS` are all of them by name, `find` finds one by name, file or module; a model of your own is a file with a
subclass of `servetwin.real.DiffusionModel`, elsewhere.
"""

from __future__ import annotations

from ..kind import Kind
from ..model_registry import KINDS, find

__all__ = ["KINDS", "Kind", "find"]
