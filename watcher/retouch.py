"""What is done to a picture around any engine: mask, enlarging, and the part drawn in tiles.

Runs in the worker's process. What is not masked stays as it was, to the last bit. Pure: pictures
in, pictures out; knows no device. A large picture is redrawn tile by tile, so that beside it only
one tile is in memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageOps

from watcher.engine import Engine, EngineRequest, Preview, Report, Result
from watcher.jobs import MAX_SEED
from watcher.upscaling import LANCZOS, REFINE, overlap_of, tiles_of

#: Makes a picture several times as large; calls its argument now and then, which may raise.
Upscaler = Callable[[Image.Image, Callable[[], None]], Image.Image]
Box = tuple[int, int, int, int]

_USUAL_PADDING = 32  #: pixels around what `mask_only` draws
_BLACK = "The mask covers nothing: the picture is the one it starts from."


class Retouch:
    """One job, drawn by one engine in one pass or several; its progress and facts are told as one.

    Args:
        forwards: of all passes, as they were planned.
        upscaler: for a method that is a file.
    """

    def __init__(
        self, engine: Engine, report: Report, *, forwards: int, upscaler: Upscaler | None = None
    ) -> None:
        self._engine = engine
        self._report = report
        self._forwards = forwards
        self._upscaler = upscaler
        self._done = 0  #: forwards of this job, as they were reported
        self._ran: int | None = 0  #: as the engine counted them; None when nobody knows
        self._facts: dict[str, Any] = {}
        self._timings: dict[str, float] = {}

    def draw(self, request: EngineRequest) -> Result:
        """The picture that ``request`` asks for; raises what the engine raises."""
        if request.upscale is None:
            self._forwards = 0  # the engine knows best
        if request.only_enlarged and request.image is not None:
            image = request.image
        else:
            image = self._draw_masked(request)
        if request.upscale is not None:
            image = self._enlarge(request, image)
        self._facts["forwards"] = self._ran
        return Result(image, self._facts, self._timings)

    def _pass(
        self, request: EngineRequest, show: Callable[[Image.Image], Image.Image], **changed: Any
    ) -> Image.Image:
        """One call of the engine, for ``request`` without what is done here.

        ``show`` makes of a preview of what it draws one of the picture.
        """
        plain = dict.fromkeys(("upscale", "mask_blur", "mask_invert", "mask_only", "mask_padding"))
        before = self._done

        def report(done: int, total: int, preview: Preview = None) -> None:
            self._done = before + done
            total = max(self._forwards, before + total)
            self._report(self._done, total, preview and (lambda: _shown_preview(preview, show)))

        made = self._engine.generate(request.model_copy(update=plain | changed), report)
        result = made if isinstance(made, Result) else Result(made)
        ran = result.facts.get("forwards", self._done - before or None)
        if self._ran is not None:
            self._ran = self._ran + ran if isinstance(ran, int) else None
        warnings = [*self._facts.get("warnings", ()), *result.facts.get("warnings", ())]
        self._facts |= result.facts
        if warnings:
            self._facts["warnings"] = list(dict.fromkeys(warnings))
        for name, seconds in result.timings.items():
            self._timings[name] = self._timings.get(name, 0.0) + seconds
        return result.image

    # -- the mask

    def _draw_masked(self, request: EngineRequest) -> Image.Image:
        image, mask = request.image, request.mask
        if image is None or mask is None:
            return self._pass(request, lambda preview: preview)
        hard = (ImageOps.invert(mask) if request.mask_invert else mask).point(_black_or_white)
        blur = request.mask_blur
        soft = hard.filter(ImageFilter.GaussianBlur(blur)) if blur else hard
        covered = soft.getbbox()
        if covered is None:
            self._facts["warnings"] = [_BLACK]
            return image
        box = (0, 0, *image.size)
        if request.mask_only:
            padding = request.mask_padding
            box = _around(covered, _USUAL_PADDING if padding is None else padding, image.size)
        part = {
            "image": _scaled(image, image.size, box),
            "mask": _scaled(hard, image.size, box).point(_black_or_white),
        }
        made = self._pass(request, _within(image, box), **part)
        whole = image.copy()
        whole.paste(_scaled(made, (box[2] - box[0], box[3] - box[1])), box[:2])
        return Image.composite(whole, image, soft)

    # -- larger

    def _enlarge(self, request: EngineRequest, image: Image.Image) -> Image.Image:
        upscale: Mapping[str, Any] = request.upscale or {}
        method = upscale.get("method", LANCZOS)
        if self._upscaler is not None and method not in (LANCZOS, REFINE):
            image = self._upscaler(image, self._still_here)
        large = image.resize(request.final_size, Image.Resampling.LANCZOS)
        return self._refine(request, large, upscale) if method == REFINE else large

    def _still_here(self) -> None:
        """Report the same progress again: raises Cancelled if wanted, and shows that the job goes on."""
        self._report(self._done, max(1, self._forwards, self._done))

    def _refine(
        self, request: EngineRequest, large: Image.Image, upscale: Mapping[str, Any]
    ) -> Image.Image:
        """``large``, redrawn tile by tile; each fades into those before it."""
        tile = upscale.get("tile", max(large.size))
        canvas = large.copy()
        for number, box in enumerate(tiles_of(*large.size, tile)):
            part = large.crop(box)
            made = self._pass(
                request, _within(canvas, box), image=part, mask=None, strength=upscale.get("strength"),
                width=part.width, height=part.height, seed=(request.seed + number) & MAX_SEED,
            )  # fmt: skip
            canvas.paste(made, box[:2], _fading(made.size, overlap_of(tile), box))
        return canvas


def _shown_preview(
    preview: Preview, show: Callable[[Image.Image], Image.Image]
) -> Image.Image | None:
    """A preview as ``show`` makes it, drawn now."""
    drawn = preview() if callable(preview) else preview
    return None if drawn is None else show(drawn)


def _within(whole: Image.Image, box: Box) -> Callable[[Image.Image], Image.Image]:
    """Makes of a preview of what lies in ``box`` one of ``whole``, as small."""

    def show(part: Image.Image) -> Image.Image:
        small = max(1, (box[2] - box[0]) // part.width)
        seen = whole.resize([max(1, side // small) for side in whole.size])
        seen.paste(part, (box[0] // small, box[1] // small))
        return seen

    return show


def _black_or_white(value: int) -> int:
    return 255 if value >= 128 else 0


def _scaled(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """What lies in ``box`` (all of it), brought to ``size``; the very pixels where that is theirs."""
    box = box or (0, 0, *image.size)
    if box == (0, 0, *size):
        return image
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def _around(box: Box, padding: int, size: tuple[int, int]) -> Box:
    """``box`` with ``padding`` on every side, grown to the shape of ``size`` and inside of it."""
    left, top, right, bottom = box
    share = max((right - left + 2 * padding) / size[0], (bottom - top + 2 * padding) / size[1])
    width, height = (min(side, max(1, round(side * share))) for side in size)
    x = min(max(0, (left + right - width) // 2), size[0] - width)
    y = min(max(0, (top + bottom - height) // 2), size[1] - height)
    return x, y, x + width, y + height


def _fading(size: tuple[int, int], overlap: int, box: Box) -> Image.Image:
    """How much of a tile counts: it comes up over ``overlap`` pixels where others were before it."""
    along = []
    for side, start in zip(size, box, strict=False):
        ramp = [255 * (i + 1) // (overlap + 1) for i in range(overlap)] if start else []
        along.append(bytes([*ramp, *[255] * (side - len(ramp))]))
    across = Image.frombytes("L", (size[0], 1), along[0]).resize(size)
    down = Image.frombytes("L", (1, size[1]), along[1]).resize(size)
    return ImageChops.multiply(across, down)
