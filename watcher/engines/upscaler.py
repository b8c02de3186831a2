"""Make a picture larger by a network in a file, through spandrel, in overlapping tiles.

Only ``.safetensors`` is read: other kinds may hold programs. The last network stays loaded.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from watcher.engines.shortage import sparing_memory
from watcher.errors import SteadyError
from watcher.upscaling import tiles_of

_TILE = 256  #: pixels on a side of what the network sees at once
_CONTEXT = 16  #: pixels around it that it sees too, so that no seam is seen


def upscaler_of(
    file: Path, device: str
) -> Callable[[Image.Image, Callable[[], None]], Image.Image]:
    """The network in ``file``, ready; it calls its second argument before each tile.

    Raises SteadyError ``upscaler_unusable``; the network OutOfMemory.
    """
    told = file.stat()
    model = _loaded(str(file), told.st_size, told.st_mtime_ns, device)

    def enlarge(image: Image.Image, still_wanted: Callable[[], None]) -> Image.Image:
        scale = int(model.scale)
        large = Image.new("RGB", (image.width * scale, image.height * scale))
        for box in tiles_of(*image.size, _TILE):
            still_wanted()
            left, top = (max(0, start - _CONTEXT) for start in box[:2])
            right, bottom = (
                min(image.width, box[2] + _CONTEXT),
                min(image.height, box[3] + _CONTEXT),
            )
            part = image.crop((left, top, right, bottom))
            made = sparing_memory(functools.partial(_through, model, part, device))
            inner = made.crop((
                *(scale * (box[0] - left), scale * (box[1] - top)),
                *(scale * (box[2] - left), scale * (box[3] - top)),
            ))  # fmt: skip
            large.paste(inner, (scale * box[0], scale * box[1]))
        return large

    return enlarge


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
        words = (
            f"The upscaler's network is none that can be run: {' '.join(str(error).split())[:200]}"
        )
        raise SteadyError("upscaler_unusable", words) from None
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.scale < 2:
        raise SteadyError("upscaler_unusable", "The upscaler's network does not enlarge pictures.")
    return model.eval()


def _through(model: Any, image: Image.Image, device: str) -> Image.Image:
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    pixels = raw.view(image.height, image.width, 3).permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        made = model(pixels.to(device).float() / 255)[0]
    levels = (made.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(levels.cpu().numpy())
