"""What the engines on torch share: one pipeline of diffusers on one device of this machine.

The story from a model's folder to a picture. Its rooms: ``files.py`` (what lies in the folder),
``loading.py`` (from there into memory), ``device.py`` (what this machine has), ``plan.py`` (what
suits it), ``placement.py`` (where the weights are, and what is done when memory is short),
``lora.py``, ``trials.py`` (what only a trial can tell).
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from watcher.engine import EngineInfo, EngineRequest, EngineSettings, Report, Result
from watcher.engines.device import describe
from watcher.engines.files import inspect, locate_model, name_of
from watcher.engines.loading import read_pipeline
from watcher.engines.lora import Loras
from watcher.engines.placement import Placement, library_versions, prepare
from watcher.engines.plan import DevicePlan, Options, plan
from watcher.engines.shortage import sparing_memory
from watcher.engines.trials import must_work


class LocalEngine(ABC):
    """The way of every model of ours; what is a kind of model's own comes from below.

    Attributes:
        folder_kind: what the folder must call itself; None for anything.
        pipeline_kind: the class of diffusers that puts the parts together.
        lacks: engine options that it does not have.
        tile: pixels on a side of what the VAE works on at once, where not on the whole.
    """

    folder_kind: str | None = None
    pipeline_kind: str
    lacks: tuple[str, ...] = ()
    tile = 512

    #: What there is from ``load`` to ``close``.
    _pipe: Any
    _placement: Placement
    _loras: Loras
    _device: torch.device

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._options = Options.of(settings.options, without=self.lacks)
        self._details: dict[str, Any] = {}

    # -- load

    def load(self) -> EngineInfo:
        """Read the weights onto the device. Raises ModelMissing, DeviceLost, OutOfMemory, and
        SteadyError ``model_damaged``, ``model_unfit``, ``bad_config`` or ``extra_missing``."""
        model, single = self._files()
        folder, commit = locate_model(model, self._options.revision)
        contents = inspect(folder, kind=self.folder_kind, transformer=single)
        description = describe(self._settings.device)
        chosen = plan(description, self._options, self._settings.dtype, contents.weights)
        self._device = torch.device(chosen.device)
        prepare(description, chosen, self._options.threads)
        self._pipe = sparing_memory(lambda: self._read(folder, chosen, single))
        self._placement = Placement(self._pipe, chosen, tile=self.tile)
        self._placement.run(0, lambda: None)
        number = getattr(torch, chosen.dtype)
        self._loras = Loras(self._denoiser, name_of(folder), self._device, number)
        self._details = {
            "device_name": description.name,
            "tier": self._placement.tier,
            "quantize": chosen.quantize,
            "tf32": chosen.tf32,
            "tiled": False,
            "because": list(chosen.because),
        }
        own = self._made_ready(chosen)
        if self._options.warm_up:
            must_work(self._drawn_anew, chosen.dtype)
        return EngineInfo(
            model=single.stem if single else model if commit else name_of(folder),
            revision=contents.digest if single else commit or contents.digest,
            device=chosen.device,
            dtype=chosen.dtype,
            memory=self._placement.held(),
            versions=library_versions(),
            details=dict(self._details),
            **own,
        )

    def _files(self) -> tuple[str, Path | None]:
        """The model, and a single file that stands in for its transformer."""
        return self._settings.model, None

    def _read(self, folder: Path, chosen: DevicePlan, single: Path | None) -> Any:
        """The pipeline, in main memory."""
        return read_pipeline(folder, chosen, kind=self.pipeline_kind, transformer=single)

    @abstractmethod
    def _made_ready(self, chosen: DevicePlan) -> Mapping[str, Any]:
        """Do what is left to do before the first picture; the rest of the EngineInfo."""

    @abstractmethod
    def _drawn_anew(self) -> Image.Image:
        """A small picture for nobody, from the prompt on: it loads kernels and shows whether the
        model works."""

    # -- generate

    def generate(self, request: EngineRequest, report: Report) -> Result:
        """One picture. Out of memory is answered by tiles, then by lower tiers, each once."""
        return self._placement.run(self._pixels(request), lambda: self._worn(request, report))

    def _pixels(self, request: EngineRequest) -> int:
        """How large the picture is as far as memory goes."""
        return request.width * request.height

    def _worn(self, request: EngineRequest, report: Report) -> Result:
        with self._loras.worn(request.loras) as worn, self._placement.as_written(bool(worn)):
            result = self._draw(request, report)
        return replace(result, facts={**result.facts, "loras": worn}) if worn else result

    @abstractmethod
    def _draw(self, request: EngineRequest, report: Report) -> Result:
        """One picture, with the LoRAs on."""

    @property
    @abstractmethod
    def _denoiser(self) -> Any:
        """The part that is called once a step, or twice."""

    def close(self) -> None:
        """Drop the weights; what the driver keeps goes with the process."""
        for held in ("_pipe", "_placement", "_loras"):
            vars(self).pop(held, None)
        gc.collect()


def picture_of(numbers: torch.Tensor) -> Image.Image:
    """Channels x height x width of 0 to 1 as a picture.

    Rounded where the numbers are: a quarter of the bytes to copy, and the processor has nothing
    to compute while the device waits.
    """
    pixels = (numbers.float() * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.cpu().numpy())
