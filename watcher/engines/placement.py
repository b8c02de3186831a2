"""Where the weights are: on the device, or in main memory and coming over when they are needed.

The plan names the tier to begin with. What does not fit is done in tiles, where that can help, and
then takes the weights one tier down. Either is remembered for pictures of its size for ten minutes:
somebody else may have had the memory.
"""

import contextlib
import gc
import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from watcher.engine import OutOfMemory
from watcher.engines.files import role_of
from watcher.engines.plan import TIERS, DeviceDescription, DevicePlan
from watcher.engines.shortage import sparing_memory

log = logging.getLogger(__name__)

T = TypeVar("T")

#: What comes over when it is needed, by its role.
_STREAMED = {
    "resident": (),
    "offload": ("text_encoder",),
    "stream": ("text_encoder", "transformer"),
}
_TILES = "tiles"
_REMEMBERED = 600.0  #: seconds for which a size keeps the tier it took, and its tiles


def prepare(description: DeviceDescription, plan: DevicePlan, threads: int | None) -> None:
    """Make this process compute as ``plan`` says, and log why; ``threads`` of the processor."""
    for sentence in plan.because:
        log.info("%s: %s", description.name or description.device, sentence)
    if plan.device.startswith("cuda"):
        torch.cuda.set_device(torch.device(plan.device))
    if threads is not None:
        torch.set_num_threads(threads)
    if plan.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic = True


def library_versions() -> dict[str, str]:
    """Of what a picture's pixels depend on."""
    names = ("torch", "diffusers", "transformers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "python": platform.python_version()}


class Placement:
    """The weights of ``pipe`` on the device of ``plan``; ``tile``: pixels on a side of one.

    Attributes:
        tier: where they are; empty while they are nowhere for certain (before the first
            ``run``, and after a move that failed).
    """

    def __init__(
        self,
        pipe: Any,
        plan: DevicePlan,
        *,
        tile: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tier = ""
        self._pipe = pipe
        self._parts = {
            name: part
            for name, part in pipe.components.items()
            if isinstance(part, torch.nn.Module)
        }
        self._plan = plan
        self._tile = tile
        self._device = torch.device(plan.device)
        self._clock = clock
        self._took: dict[tuple[int, str], float] = {}  #: pixels, and a tier or tiles: since when
        self._compiled: dict[Any, Any] = {}  #: blocks that run uncompiled for now
        self._as_written = False
        self._vae = pipe.components.get("vae")
        if hasattr(self._vae, "tile_latent_min_size"):  # the library's: as large as its pictures
            scale = self._vae.tile_sample_min_size / self._vae.tile_latent_min_size
            self._vae.tile_sample_min_size = tile
            self._vae.tile_latent_min_size = int(tile / scale)

    def run(self, pixels: int, work: Callable[[], T]) -> T:
        """``work``'s result, on the highest tier that holds a picture of ``pixels``.

        0 pixels stand for the weights alone. Raises OutOfMemory below the last tier.
        """
        tier: str | None = self._tier_for(pixels)
        words = ""
        while tier is not None:
            try:
                self._settle(tier)
                return work()
            except OutOfMemory as error:
                words = str(error)
            # Outside of the handler: only now are the tensors of the attempt gone.
            self.free()
            tier = self._plan.below(tier)
            if tier is not None:
                log.warning("%d pixels: out of memory; trying again: %s", pixels, tier)
                self._took[pixels, tier] = self._clock()
        raise OutOfMemory(words)

    def whole_or_tiled(self, size: tuple[int, int], work: Callable[[], T]) -> tuple[T, bool]:
        """``work``'s result, and whether the VAE worked in tiles: it does where a whole is too large.

        ``size`` in pixels: what is no larger than one tile is never tried again.
        """
        vae, pixels = self._vae, size[0] * size[1]
        if not hasattr(vae, "use_tiling") or max(size) <= self._tile:
            return sparing_memory(work), False
        vae.use_tiling = pixels > self._plan.tile_above or _TILES in self._taken(pixels)
        try:
            if not vae.use_tiling:
                try:
                    return sparing_memory(work), False
                except OutOfMemory:
                    log.warning("%d pixels: out of memory; trying tiles", pixels)
                self.free()
                self._took[pixels, _TILES] = self._clock()
                vae.use_tiling = True
            return sparing_memory(work), True
        finally:
            vae.use_tiling = False

    @property
    def compiles(self) -> bool:
        """May compiled blocks run?"""
        return self.tier == "resident" and not self._as_written

    @contextlib.contextmanager
    def as_written(self, wanted: bool) -> Iterator[None]:
        """Inside, no compiled block runs, if ``wanted``: they do not see hooks that come later."""
        if not wanted:
            yield
            return
        self._as_written = True
        self._set_compiled(False)
        try:
            yield
        finally:
            self._as_written = False
            self._set_compiled(self.compiles)

    def _tier_for(self, pixels: int) -> str:
        """The planned tier, or the lower one that a picture not larger than this took."""
        return max([self._plan.tier, *self._taken(pixels) - {_TILES}], key=TIERS.index)

    def _taken(self, pixels: int) -> set[str]:
        """The tiers, and tiles, that pictures not larger than this took of late."""
        since = self._clock() - _REMEMBERED
        self._took = {took: when for took, when in self._took.items() if when > since}
        return {what for size, what in self._took if size <= pixels}

    def _settle(self, tier: str) -> None:
        if tier == self.tier:
            return
        self.tier = ""  # neither here nor there, should this fail
        sparing_memory(lambda: self._move(tier))
        self.tier = tier
        self.free()

    def _move(self, tier: str) -> None:
        _end_streaming(self._parts.values())
        self._set_compiled(tier == "resident")
        streamed = [name for name in self._parts if role_of(name) in _STREAMED[tier]]
        if not streamed:
            self._pipe.to(self._device)
            return
        for name in streamed:
            self._parts[name].to("cpu")
        self.free()
        locked = self._plan.locked
        if locked:
            try:
                sparing_memory(lambda: self._stream(streamed, locked=True))
            except OutOfMemory as error:
                log.warning("main memory cannot be locked (%s): slower copies", error)
                _end_streaming(self._parts.values())
                locked = False
        if not locked:
            self._stream(streamed, locked=False)

    def _stream(self, streamed: Sequence[str], *, locked: bool) -> None:
        """Let these parts come over layer by layer, and put the others on the device."""
        self._pipe.enable_group_offload(
            onload_device=self._device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            non_blocking=True,
            use_stream=self._device.type == "cuda",
            low_cpu_mem_usage=not locked,
            # The VAE is small, and its tiles would confuse the order of loading.
            exclude_modules=[name for name in self._parts if name not in streamed],
        )

    def _set_compiled(self, wanted: bool) -> None:
        """Switch compiled blocks on or off: under the hooks of streaming each would compile again and
        again."""
        for block in (m for part in self._parts.values() for m in part.modules()):
            if block._compiled_call_impl is not None and not wanted:
                self._compiled[block] = block._compiled_call_impl
                block._compiled_call_impl = None
            elif wanted and block in self._compiled:
                block._compiled_call_impl = self._compiled.pop(block)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def free(self) -> None:
        """Give back what nothing uses any more."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def held(self) -> int:
        """Bytes the model takes on its device."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        weights = (p for part in self._parts.values() for p in part.parameters())
        return sum(p.numel() * p.element_size() for p in weights)


def _end_streaming(parts: Iterable[torch.nn.Module]) -> None:
    """Take off what streaming hung on the parts: the library itself never does."""
    for part in parts:
        for module in part.modules():
            registry = getattr(module, "_diffusers_hook", None)
            if registry is not None:
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)
