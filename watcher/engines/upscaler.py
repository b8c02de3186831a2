"""Make a picture larger by a network in a file, through spandrel, in tiles.

Only ``.safetensors`` is read: other kinds may hold programs. The last network stays loaded.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from watcher.engine import OutOfMemory
from watcher.engines.local import picture_of
from watcher.engines.shortage import is_out_of_memory, is_poison, sparing_memory
from watcher.errors import SteadyError

_TILES = (256, 128, 64)  #: pixels on a side of what the network sees at once; less in need
_CONTEXT = 16  #: pixels around it that it sees too, so that no seam is seen


def upscaler_of(
    file: Path, device: str
) -> Callable[[Image.Image, Callable[[], None]], Image.Image]:
    """The network in ``file``, ready; it calls its second argument before each tile.

    ``device``: the engine's; on the processor where that is none of torch. Raises SteadyError
    ``upscaler_unusable``, OutOfMemory; the network OutOfMemory.
    """
    told = file.stat()
    device = device if device.startswith(("cuda", "mps")) else "cpu"
    load = functools.partial(_loaded, str(file), told.st_size, told.st_mtime_ns, device)
    model = sparing_memory(load)

    def enlarge(image: Image.Image, still_wanted: Callable[[], None]) -> Image.Image:
        for tile in _TILES:
            try:
                return _in_tiles(model, image, tile, still_wanted, device)
            except OutOfMemory as error:
                words = str(error)
        raise OutOfMemory(words)

    return enlarge


def _in_tiles(
    model: Any, image: Image.Image, tile: int, still_wanted: Callable[[], None], device: str
) -> Image.Image:
    scale = int(model.scale)
    large = Image.new("RGB", (image.width * scale, image.height * scale))
    across, down = (_cuts(side, tile) for side in image.size)
    for (top, bottom), (left, right) in itertools.product(down, across):
        still_wanted()
        x, y = max(0, left - _CONTEXT), max(0, top - _CONTEXT)
        until = min(image.width, right + _CONTEXT), min(image.height, bottom + _CONTEXT)
        part = image.crop((x, y, *until))
        made = sparing_memory(functools.partial(_through, model, part, device))
        a, b, c, d = (scale * edge for edge in (left - x, top - y, right - x, bottom - y))
        large.paste(made.crop((a, b, c, d)), (scale * left, scale * top))
    return large


def _cuts(side: int, tile: int) -> list[tuple[int, int]]:
    """Where the tiles along one side begin and end: as even as can be."""
    count = -(-side // tile)
    return list(itertools.pairwise(side * i // count for i in range(count + 1)))


@functools.lru_cache(maxsize=1)
def _loaded(file: str, _size: int, _mtime: int, device: str) -> Any:
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except (ImportError, RuntimeError) as error:  # a torchvision made for another torch
        words = f"Upscalers cannot be used here: {' '.join(str(error).split())[:200]}"
        remedy = "Install torch and torchvision from the same index, or take `lanczos`."
        raise SteadyError("upscaler_unusable", words, remedy=remedy) from None
    try:
        model = ModelLoader(device=device).load_from_file(file)
    except (UnsupportedModelError, RuntimeError, ValueError, KeyError) as error:
        if is_out_of_memory(error) or is_poison(error):
            raise
        said = " ".join(str(error).split())[:200]
        words = f"This upscaler file is of a kind that is not supported: {said}"
        raise SteadyError("upscaler_unusable", words) from None
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.scale < 2:
        raise SteadyError("upscaler_unusable", "The upscaler's network does not enlarge pictures.")
    return model.eval()


def _through(model: Any, image: Image.Image, device: str) -> Image.Image:
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    pixels = raw.view(image.height, image.width, 3).permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        made = model(pixels.to(device).float() / 255)[0]
    return picture_of(made.clamp(0, 1))
