"""What the models of a root allow: a model's card, and the limits of a job file.

Defaults of a job are filled in here and nowhere else. Pure data: where a model lies and what its
files say of it is read in models/. Sides are pixels.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from watcher.errors import SteadyError
from watcher.jobs import JobRequest
from watcher.modelnames import LoraChoice
from watcher.upscaling import (
    LANCZOS,
    MAX_LARGE_SIDE,
    MULTIPLE,
    REFINE,
    USUAL_STRENGTH,
    tiles_of,
    upscale_of,
)


@dataclass(frozen=True)
class Card:
    """One model, as a job sees it: what runs it, what it allows, what it takes when not told.

    As it stands, Z-Image-Turbo on the engine ``zimage``. Sides are pixels.
    """

    name: str = "Tongyi-MAI/Z-Image-Turbo"
    engine: str = "zimage"
    source: str = "Tongyi-MAI/Z-Image-Turbo"  #: folder, file or hub name
    #: the source, and what more the settings name of its files
    pieces: tuple[str, ...] = field(default=(), compare=False)
    default_width: int = 1024
    default_height: int = 1024
    default_steps: int = 9
    default_guidance: float | None = None
    min_side: int = 16
    max_side: int = 2048
    max_pixels: int = 2048 * 2048
    #: what of a request has an effect; None while nobody knows
    accepts: tuple[str, ...] | None = ()
    sampler: str | None = "Euler"
    schedule: str | None = "Simple"
    idle_steps: int = 1  #: of the steps a job asks for, how many take no forward
    unguided: float = 1.0  #: the web UI's CFG scale that is guidance 0 here
    #: where the model lies, if it is here: tells which prompts are longer than it reads
    folder: Path | None = field(default=None, compare=False)
    #: what names its very weights; None while nobody knows
    revision: str | None = None
    #: why it cannot be loaded, where its files are not here
    absent: SteadyError | None = field(default=None, compare=False)
    #: further settings of its engine
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def takes(self, feature: str) -> bool:
        """Has this an effect, as far as anybody knows?"""
        return self.accepts is None or feature in self.accepts

    @property
    def of_tiles(self) -> "Card":
        """The same without its largest size: for an input that it redraws tile by tile, or not at all."""
        return replace(self, max_side=MAX_LARGE_SIDE, max_pixels=MAX_LARGE_SIDE**2)

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """The nearest size it makes: each side a multiple of 16, and not too many pixels."""
        low = -(-self.min_side // MULTIPLE) * MULTIPLE
        high = self.max_side // MULTIPLE * MULTIPLE
        near = [(side + MULTIPLE // 2) // MULTIPLE * MULTIPLE for side in (width, height)]
        wide, tall = (min(max(side, low), high) for side in near)
        if wide * tall > self.max_pixels:
            shrink = (self.max_pixels / (wide * tall)) ** 0.5
            wide, tall = (max(low, int(s * shrink) // MULTIPLE * MULTIPLE) for s in (wide, tall))
        return wide, tall

    def forwards(self, steps: int, strength: float = 1.0) -> int:
        """Calls of the model for so many ``num_inference_steps``; at least one.

        ``strength``: the part of them that an input is redrawn by.
        """
        whole = max(1, steps - self.idle_steps)
        return whole if strength == 1.0 else max(1, math.ceil(round(whole * strength, 6)))

    def steps(self, forwards: int) -> int:
        """The ``num_inference_steps`` of so many forwards."""
        return forwards + self.idle_steps

    def guidance(self, cfg_scale: float) -> float:
        """The ``guidance_scale`` of what the web UI calls a CFG scale."""
        return max(0.0, cfg_scale - self.unguided)

    def upscaling(self, said: Any) -> Any:
        """What a job says of `upscale`, with all that it leaves open."""
        found = upscale_of(said)
        if not isinstance(found, dict):
            return said
        method = found.get("method") or (REFINE if "image" in (self.accepts or ()) else LANCZOS)
        usual: dict[str, Any] = {}
        if method == REFINE:
            tile = min(self.max_side, math.isqrt(self.max_pixels), MAX_LARGE_SIDE) // 16 * 16
            usual = {"strength": USUAL_STRENGTH, "tile": max(64, tile)}
        return usual | found | {"method": method}

    @functools.cached_property
    def defaults(self) -> tuple[tuple[str, Any], ...]:
        """Fields of a request and what they are when it leaves them open."""
        found = (
            ("width", self.default_width),
            ("height", self.default_height),
            ("num_inference_steps", self.default_steps),
            ("guidance_scale", self.default_guidance),
        )
        return tuple((name, value) for name, value in found if value is not None)


@dataclass(frozen=True)
class Limits:
    """What the jobs of a root may be: its models, and how many jobs one file may hold."""

    usual: Card = Card()  #: the model of a job that names none
    others: Mapping[str, Card] = field(default_factory=dict)  #: by name
    #: the LoRAs of a job, checked for its model; SteadyError says why not
    loras: "Callable[[Sequence[LoraChoice], Card], list[LoraChoice]]" = field(
        default=lambda choices, card: list(choices), compare=False
    )
    #: finds the file of an upscaler; SteadyError says why not
    upscaler: Callable[[str], object] = field(default=lambda name: None, compare=False)
    max_jobs_per_file: int = 1000  #: .yaml and .json
    max_lines: int = 100_000  #: .jsonl, .csv, .tsv
    default_format: str = "png"
    #: with the placeholders of `name`; None: by the file or the time
    default_name: str | None = None
    #: where jobs may want to be told, as config.yaml lists them
    webhook_hosts: tuple[str, ...] = ()

    @property
    def cards(self) -> list[Card]:
        """Its models, the usual one first."""
        return [self.usual, *self.others.values()]

    @property
    def names(self) -> list[str]:
        """What a job may give as its model, the usual one first."""
        return [card.name for card in self.cards]

    def named(self, name: str) -> Card | None:
        """The model of this name."""
        return self.usual if name == self.usual.name else self.others.get(name)

    def in_record(self, name: str | None) -> list[str]:
        """What jobs of the model ``name`` say there; one that waits and named none is the usual's."""
        if name is None:
            return []
        return [name, ""] if name == self.usual.name else [name]

    def card(self, values: Mapping[str, Any]) -> Card:
        """The model that judges a job of these ``values``; the usual one where they name none
        that there is."""
        name = values.get("model")
        return (isinstance(name, str) and self.named(name)) or self.usual

    def forwards(self, request: JobRequest) -> int:
        """How often the model of this job is called for it."""
        card = self.card(request.__dict__)
        steps = request.num_inference_steps or card.default_steps
        total = 0 if request.only_enlarged else card.forwards(steps, request.strength_used)
        up = request.upscale
        if up is not None and up.get("method") == REFINE:
            tiles = tiles_of(*request.final_size, up.get("tile", MAX_LARGE_SIDE))
            total += len(tiles) * card.forwards(steps, up.get("strength", USUAL_STRENGTH))
        return max(1, total)

    def fill(self, values: dict[str, Any]) -> Card:
        """Set in ``values`` what a job leaves open, but for its seed; nobody else does.

        Returns the model that judges the job.
        """
        card = self.card(values)
        usual = (*card.defaults, ("format", self.default_format))
        if values.get("upscale") is not None:
            values["upscale"] = card.upscaling(values["upscale"])
        if values.get("image"):
            usual += (("resize", "crop"),)
            if values.get("mask") or values.get("upscale") is None:  # else it is enlarged as it is
                usual += (("strength", 1.0 if values.get("mask") else 0.6),)
        for name, value in usual:
            if values.get(name) is None:
                values[name] = value
        return card
