"""Networks that make pictures larger: files in ``upscalers/``, found by name, checked by header.

Looks only, so a crash leaves nothing. Whether the network itself is one that we can run only its
worker finds out.
"""

import importlib.util
from pathlib import Path

from watcher.errors import SteadyError, did_you_mean
from watcher.models.catalogue import outline

_SUFFIX = ".safetensors"


def upscaler_names(folder: Path) -> list[str]:
    """What the files there are called."""
    return sorted(path.stem for path in folder.glob(f"*{_SUFFIX}"))


def upscaler_file(folder: Path, name: str) -> Path:
    """The file of a method that is neither Lanczos nor the model's own.

    Raises SteadyError ``upscaler_unusable``.
    """
    stem = name.removesuffix(_SUFFIX)
    known = upscaler_names(folder)
    if stem not in known:  # so it is the name of a file there, whatever it says
        names = ["lanczos", "refine", *known]
        remedy = did_you_mean(stem, names, f"There are {', '.join(names[:12])}.")
        raise SteadyError(
            "upscaler_unusable", f"There is no upscaler `{name[:100]}`.", remedy=remedy
        )
    path = folder / f"{stem}{_SUFFIX}"
    try:
        entries = outline(path)
    except (OSError, ValueError):
        words = f"The file of the upscaler `{stem}` is damaged or cut off."
        raise SteadyError("upscaler_unusable", words) from None
    kernels = [
        e for n, e in entries.items() if n != "__metadata__" and len(e.get("shape", ())) == 4
    ]
    if not kernels:
        words = f"`{stem}` is no network for pictures: it holds no convolution."
        raise SteadyError("upscaler_unusable", words)
    if importlib.util.find_spec("spandrel") is None:
        raise SteadyError(
            "upscaler_unusable",
            f"The upscaler `{stem}` needs a part that is not installed.",
            remedy="Run `pip install 'steadydiffusion[upscale]'`, or take `lanczos` or `refine`.",
        )
    return path
