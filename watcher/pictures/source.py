"""Pictures that jobs start from: what a file is, and its pixels as an engine takes them.

A picture comes from a camera, a program or a stranger. Whatever can be known from its head is
known before its pixels take memory. Pure: bytes in, values out; names no file.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from watcher.errors import SteadyError
from watcher.suffixes import MAX_PICTURE, PICTURE_FORMATS

MAX_SIDE = 12_000  #: pixels
MAX_PIXELS = 50_000_000
MIN_SIDE = 16  #: pixels

Size = tuple[int, int]  #: width, height

#: What plug-ins raise at broken files; AVIF's decoder says RuntimeError to all of it.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error,
           zlib.error)  # fmt: skip
_TRANSPOSED = frozenset({5, 6, 7, 8})  #: orientations that swap the sides
_ORIENTATION = 0x0112
_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 255)


@dataclass(frozen=True)
class Source:
    """What a picture is, as a person sees it: upright. ``several``: the file holds more of them."""

    width: int
    height: int
    several: bool = False

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.width, self.height


def look_at(data: bytes) -> Source:
    """What the picture in ``data`` is.

    Takes memory for its pixels only where its format cannot tell otherwise that it is whole.
    Raises SteadyError bad_picture, in words that need the picture's name before them.
    """
    with _opened(data) as image:
        _must_be_whole(image, data)
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _TRANSPOSED:
            width, height = height, width
        # Cameras put a preview or a depth map behind the photograph: that is no animation.
        # Asked whether, never how many: to count takes hours of a file made for that.
        several = image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
    return Source(width, height, several)


def pixels_of(data: bytes, size: Size, how: str = "crop") -> Image.Image:
    """The picture in ``data`` as RGB of exactly ``size``: upright, in sRGB, on white.

    ``how``: ``crop`` what is too much, ``pad`` what is missing with white, or ``stretch``.
    Raises SteadyError bad_picture.
    """
    with _opened(data) as image:
        return _sized(_flat(image, _WHITE), size, how, (255, 255, 255))


def mask_of(data: bytes, size: Size, how: str = "crop") -> Image.Image:
    """The mask in ``data`` as L of exactly ``size``; what is transparent, or padded, is black.

    Raises SteadyError bad_picture.
    """
    with _opened(data) as image:
        return _sized(_flat(image, _BLACK), size, how, (0, 0, 0)).convert("L")


def clear_in(data: bytes) -> bytes | None:
    """What is transparent in the picture, as a mask of its size (PNG); None where nothing is.

    Raises SteadyError bad_picture.
    """
    with _opened(data) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if not upright.has_transparency_data:
            return None
        clear = ImageOps.invert(upright.convert("RGBA").getchannel("A"))
    if clear.getbbox() is None:
        return None
    made = io.BytesIO()
    clear.save(made, "PNG")
    return made.getvalue()


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture, its head read and within the limits; whatever breaks inside is said so."""
    if len(data) > MAX_PICTURE:
        raise _bad(f"has more than {MAX_PICTURE >> 20} MiB")
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise _too_large(f"is {width}x{height}")
            if min(width, height) < MIN_SIDE:
                raise _bad(f"is {width}x{height}; at least {MIN_SIDE} pixels a side are needed")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("is far too large") from None
    except UnidentifiedImageError:
        raise _bad(f"is no picture that can be read ({', '.join(PICTURE_FORMATS)})") from None
    except _BROKEN:
        raise _bad("is damaged or cut off") from None


def _bad(words: str) -> SteadyError:
    return SteadyError("bad_picture", f"{words}.")


def _too_large(words: str) -> SteadyError:
    most = f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS // 1_000_000} million in all"
    return _bad(f"{words}; {most} are taken")


def _must_be_whole(image: Image.Image, data: bytes) -> None:
    """Raises one of _BROKEN for a file that was cut off."""
    match image.format:
        case "JPEG" | "MPO":
            if data.rfind(b"\xff\xd9", _scan_of(data)) < 0:
                raise EOFError
        case "WEBP":
            if len(data) < 8 + int.from_bytes(data[4:8], "little"):
                raise EOFError
        case _:
            image.load()


def _scan_of(data: bytes) -> int:
    """Where the pixels of a JPEG begin: behind all segments, one of which may hold a small JPEG."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if data[at + 1] != 0xFF else 1
    return at


def _flat(image: Image.Image, ground: tuple[int, int, int, int]) -> Image.Image:
    """Upright, in sRGB, RGB, with ``ground`` under what is transparent."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # convert would cut each value at 255
        wide = upright.convert("I")
        if wide.point(lambda level: level * (1 / 65536) + 0).getbbox():
            raise _bad("has more than 16 bits a channel")
        upright = wide.point(lambda level: level * (1 / 257) + 0.5).convert("L")
    elif upright.mode == "F":
        raise _bad("holds floating point numbers")
    alpha = None
    if upright.has_transparency_data:  # also a palette's, and one colour's
        profile = upright.info.get("icc_profile")
        upright = upright.convert("RGBA")
        upright.info["icc_profile"] = profile
        alpha = upright.getchannel("A")
    flat = _in_srgb(upright)
    if alpha is not None:
        below = Image.new("RGBA", flat.size, ground)
        flat.putalpha(alpha)
        flat = Image.alpha_composite(below, flat).convert("RGB")
    return flat


def _in_srgb(image: Image.Image) -> Image.Image:
    """RGB in sRGB, without alpha; a profile that cannot be used is passed over."""
    profile = image.info.get("icc_profile")
    if image.mode == "RGBA":
        image = image.convert("RGB")
    elif image.mode in ("1", "P", "PA", "LA"):
        image = image.convert("RGB" if image.mode.startswith("P") else "L")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(own).lower():  # else: exact as it is
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
                image = converted or image
    return image if image.mode == "RGB" else image.convert("RGB")


def _sized(image: Image.Image, size: Size, how: str, ground: tuple[int, int, int]) -> Image.Image:
    if image.size == size:
        image.info = {}
        return image
    lanczos = Image.Resampling.LANCZOS
    if how == "stretch":
        made = image.resize(size, lanczos)
    elif how == "pad":
        made = ImageOps.pad(image, size, lanczos, color=ground)
    else:
        made = ImageOps.fit(image, size, lanczos)
    made.info = {}
    return made
