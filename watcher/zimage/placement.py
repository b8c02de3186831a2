"""Where the weights are: on the device, or in main memory and coming over when they are needed.

The plan names the tier to begin with. What does not fit takes the weights one tier down, and
that is remembered for pictures of its size: nothing is tried twice on one tier.
"""

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from watcher.engine import OutOfMemory
from watcher.plan import TIERS, Plan
from watcher.zimage.files import PARTS
from watcher.zimage.shortage import sparing_memory

log = logging.getLogger("watcher.zimage")

T = TypeVar("T")


class Placement:
    """The weights of ``pipe`` on the device of ``plan``.

    Attributes:
        tier: where they are; empty while they are nowhere for certain (before the first
            ``run``, and after a move that failed).
    """

    def __init__(self, pipe: Any, plan: Plan) -> None:
        self.tier = ""
        self._pipe = pipe
        self._plan = plan
        self._device = torch.device(plan.device)
        self._took: dict[int, str] = {}  #: pixels -> the tier that they took

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
                self._took[pixels] = tier
        raise OutOfMemory(words)

    def _tier_for(self, pixels: int) -> str:
        """The planned tier, or the lower one that a picture not larger than this took."""
        known = [tier for size, tier in self._took.items() if size <= pixels]
        return max([self._plan.tier, *known], key=TIERS.index)

    def _settle(self, tier: str) -> None:
        if tier == self.tier:
            return
        self.tier = ""  # neither here nor there, should this fail
        sparing_memory(lambda: self._move(tier))
        self.tier = tier
        self.free()

    def _move(self, tier: str) -> None:
        pipe = self._pipe
        pipe.remove_all_hooks()
        _end_streaming(pipe)
        if tier == "resident":
            pipe.to(self._device)
        elif tier == "offload":
            pipe.enable_model_cpu_offload(device=self._device)
        else:
            pipe.to("cpu")
            pipe.enable_group_offload(
                onload_device=self._device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                non_blocking=True,
                use_stream=self._device.type == "cuda",
                exclude_modules=["vae"],  # small, and its tiles would confuse the order of loading
            )

    def rest(self) -> None:
        """A picture has ended, well or not: what came over for it goes back."""
        if self.tier == "offload":
            self._pipe.maybe_free_model_hooks()

    def wait(self) -> None:
        """Until the device has done all it was told to do."""
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
        parts = [getattr(self._pipe, name) for name in PARTS]
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def _end_streaming(pipe: Any) -> None:
    """Take off what streaming hung on the parts: the library itself never does."""
    for part in PARTS:
        for module in getattr(pipe, part).modules():
            registry = getattr(module, "_diffusers_hook", None)
            if registry is not None:
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)
