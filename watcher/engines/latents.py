"""The mathematics of latents: where a picture begins, and what of it stays as it was.

Latents are 1 x channels x height/8 x width/8, float32. Pure; knows no pipeline and no prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift
from PIL import Image

SCALE = 8  #: pixels on a side of one latent


def sigmas_of(forwards: int, strength: float = 1.0) -> list[float]:
    """The distilled schedule of so many forwards: ``strength`` down to a ``forwards``-th of it, evenly."""
    if forwards == 1:
        return [strength]
    last = strength / forwards
    return [strength + (last - strength) * i / (forwards - 1) for i in range(forwards)]


#: What the shift of a schedule depends on, as the pipeline reads it, and its usual values.
_SHIFT = {
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


def levels_of(scheduler: Any, sigmas: list[float], latents: torch.Tensor) -> list[float]:
    """How much noise there is before each step and after the last: ``sigmas`` with the
    scheduler's own shift."""
    length = latents.shape[-2] * latents.shape[-1] // 4  # as the transformer reads them
    mu = calculate_shift(length, *(scheduler.config.get(*each) for each in _SHIFT.items()))
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    return [float(sigma) for sigma in scheduler.sigmas]


def noise_of(width: int, height: int, seed: int, channels: int) -> torch.Tensor:
    """A job's noise, in main memory: the same on every device, and the same with an input or without."""
    shape = (1, channels, height // SCALE, width // SCALE)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def predicted(
    before: torch.Tensor, after: torch.Tensor, level: float, following: float
) -> torch.Tensor:
    """The clean latents that one step, from noise ``level`` to ``following``, aimed at."""
    return before - level * (after - before) / (following - level)


def pooled(mask: Image.Image) -> torch.Tensor:
    """Which latents have a white pixel below them (1 x 1 x height/8 x width/8): no thin line is lost."""
    width, height = mask.size
    white = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8) >= 128
    cells = white.view(1, 1, height // SCALE, SCALE, width // SCALE, SCALE)
    return cells.any(dim=5).any(dim=3)


@dataclass(frozen=True)
class Origin:
    """What a picture starts from. ``mask``: where it is repainted; None for everywhere."""

    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor | None = None

    def at(self, sigma: float) -> torch.Tensor:
        """The source with so much noise: 1 is noise alone, 0 the source itself."""
        return sigma * self.noise + (1 - sigma) * self.latents

    def kept(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """``latents`` where the mask is white, elsewhere the source at ``sigma``."""
        return latents if self.mask is None else torch.where(self.mask, latents, self.at(sigma))
