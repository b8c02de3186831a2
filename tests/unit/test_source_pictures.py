"""Pictures that jobs start from: every odd file is right to the pixel, or refused in words."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms, ImageDraw

from watcher.errors import SteadyError
from watcher.pictures.source import MAX_PIXELS, MAX_SIDE, look_at, mask_of, pixels_of
from watcher.suffixes import PICTURE_FORMATS


def written(image: Image.Image, format: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


def plain(size: tuple[int, int] = (40, 24), color: Any = (10, 200, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    """A small file whose head promises a large picture."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(data: bytes) -> str:
    with pytest.raises(SteadyError) as caught:
        look_at(data)
    assert caught.value.code == "bad_picture"
    return caught.value.message


def test_a_picture_of_the_right_size_keeps_every_pixel() -> None:
    noise = Image.effect_noise((64, 48), 90).convert("RGB")
    data = written(noise, "PNG")
    assert look_at(data).size == (64, 48)
    assert pixels_of(data, (64, 48)).tobytes() == noise.tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels_of(written(noise, "PNG", icc_profile=srgb), (64, 48)).tobytes() == noise.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_camera_held_upright_gives_an_upright_picture(format: str) -> None:
    image = plain((40, 24), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 11, 11), "red")  # top left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned to the right: then it is top right
    more: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    data = written(image, format, exif=exif, **more)
    assert look_at(data).size == (24, 40)
    upright = pixels_of(data, (24, 40))
    red, green, _ = upright.getpixel((20, 3))  # type: ignore[misc]
    assert red > 200 and green < 60
    assert min(upright.getpixel((3, 3))) > 200  # type: ignore[type-var, arg-type]


def test_sixteen_bits_are_divided_and_not_cut() -> None:
    ramp = Image.new("I;16", (256, 16))
    for x in range(256):
        for y in range(16):
            ramp.putpixel((x, y), x * 257)
    for format in ("PNG", "TIFF"):
        line = pixels_of(written(ramp, format), (256, 16)).crop((0, 0, 256, 1)).tobytes()
        assert line == bytes(x for x in range(256) for _ in "rgb")


def test_what_is_transparent_is_white_whatever_hides_below() -> None:
    hidden = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    hidden.paste((0, 0, 255, 255), (0, 0, 16, 32))
    hidden.paste((0, 0, 0, 128), (0, 0, 16, 16))
    for data in (written(hidden, "PNG"), written(hidden, "WEBP", lossless=True, exact=True)):
        made = pixels_of(data, (32, 32))
        assert made.getpixel((20, 20)) == (255, 255, 255)
        assert made.getpixel((4, 20)) == (0, 0, 255)
        assert made.getpixel((4, 4)) == (127, 127, 127)
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(0, (0, 0, 16, 32))
    made = pixels_of(written(palette, "PNG", transparency=0), (32, 32))
    assert (made.getpixel((4, 4)), made.getpixel((20, 4))) == ((255, 255, 255), (0, 255, 0))
    keyed = written(plain((32, 32), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels_of(keyed, (32, 32)).getpixel((4, 4)) == (255, 255, 255)
    pale = Image.new("LA", (32, 32), (0, 0))
    assert pixels_of(written(pale, "PNG"), (32, 32)).getpixel((4, 4)) == (255, 255, 255)


def test_other_colours_become_srgb() -> None:
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    red, green, blue = pixels_of(written(ink, "JPEG"), (32, 32)).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240 and green < 15 and blue < 15
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    lab = pixels_of(written(plain((32, 32)), "PNG", icc_profile=swapped), (32, 32))
    assert lab.getpixel((8, 8)) == (10, 200, 30)  # a profile that does not fit is passed over
    for mode in ("1", "L", "P"):
        grey = plain((32, 32), (255, 255, 255)).convert(mode)
        assert pixels_of(written(grey, "PNG"), (32, 32)).getpixel((8, 8)) == (255, 255, 255)


def test_a_wide_gamut_profile_changes_the_numbers() -> None:
    # A profile made of sRGB with red and green exchanged: what it calls red is green.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 136 + 12 * n for n in range(profile[131])}
    red, green = table[b"rXYZ"], table[b"gXYZ"]
    entries = bytes(profile[red : red + 8]), bytes(profile[green : green + 8])
    profile[red : red + 8], profile[green : green + 8] = entries[1], entries[0]
    named = bytes(profile).replace(b"s\0R\0G\0B", b"o\0d\0d\0!").replace(b"sRGB", b"odd!")
    data = written(plain((32, 32), (255, 0, 0)), "PNG", icc_profile=named)
    assert pixels_of(data, (32, 32)).getpixel((8, 8)) == (0, 255, 0)


def test_a_picture_of_another_size_is_cropped_padded_or_stretched() -> None:
    source = plain((250, 130), "white")
    ImageDraw.Draw(source).ellipse((95, 35, 154, 94), "black")  # round, and in the middle

    def round_of(made: Image.Image) -> float:
        left, top, right, bottom = made.convert("L").point(lambda v: 255 * (v < 128)).getbbox() or (
            0,
            0,
            0,
            1,
        )
        return (right - left) / (bottom - top)

    data = written(source, "PNG")
    for how in ("crop", "pad"):
        made = pixels_of(data, (256, 256), how)
        assert made.size == (256, 256) and round_of(made) == pytest.approx(1, abs=0.05), how
    assert round_of(pixels_of(data, (256, 256), "stretch")) == pytest.approx(130 / 250, abs=0.05)
    barred = pixels_of(written(plain((250, 130), "black"), "PNG"), (256, 256), "pad")
    assert barred.getpixel((128, 5)) == (255, 255, 255)
    assert barred.getpixel((128, 128)) == (0, 0, 0)


def test_a_mask_is_grey_and_what_it_leaves_out_is_kept() -> None:
    mask = Image.new("RGBA", (32, 16), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 16, 16))
    made = mask_of(written(mask, "PNG"), (32, 32), "pad")
    assert made.mode == "L"
    assert [made.getpixel(at) for at in ((4, 16), (28, 16), (4, 1))] == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", PICTURE_FORMATS)
def test_a_damaged_picture_is_refused_in_words_whatever_its_reader_says(format: str) -> None:
    data = written(Image.effect_noise((40, 24), 90).convert("RGB"), format)
    for at in range(8, len(data), max(1, len(data) // 60)):
        for piece in (b"", b"\xff" * 6, b"\0" * 6):
            damaged = data[:at] + piece + data[at + 6 :]
            with contextlib.suppress(SteadyError):  # or it is a picture all the same
                look_at(damaged)
                pixels_of(damaged, (64, 64))


def test_of_an_animation_the_first_is_taken() -> None:
    frames = [plain((32, 32), color) for color in ("red", "lime", "blue")]
    for format, more in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = written(frames[0], format, save_all=True, append_images=frames[1:], **more)
        assert look_at(data).several, format
        assert not look_at(written(frames[0], format)).several, format
        assert pixels_of(data, (32, 32)).getpixel((8, 8)) == (255, 0, 0), format


def test_a_file_made_of_a_million_pictures_is_not_walked_through() -> None:
    """To count them takes the square of their number: the way on is not gone, wherever it leads."""
    data = written(plain((32, 32)), "TIFF")
    head = int.from_bytes(data[4:8], "little")
    on = head + 2 + 12 * int.from_bytes(data[head : head + 2], "little")
    endless = data[:on] + (2**31).to_bytes(4, "little") + data[on + 4 :]
    with Image.open(io.BytesIO(endless)) as image, pytest.raises(Exception):  # noqa: B017
        image.n_frames  # type: ignore[attr-defined]  # noqa: B018
    assert look_at(endless).several


def test_a_camera_that_keeps_a_second_picture_in_the_file_is_no_animation() -> None:
    data = written(plain(), "MPO", save_all=True, append_images=[plain((40, 24), "red")])
    assert look_at(data) == look_at(written(plain(), "JPEG"))


def whole_files() -> dict[str, bytes]:
    image = Image.effect_noise((80, 64), 90).convert("RGB")
    exif = Image.Exif()
    found = {f: written(image, f) for f in ("PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")}
    # a preview inside must not count as the end of the picture
    exif_bytes = exif.tobytes() + written(plain(), "JPEG")
    return found | {"JPEG": written(image, "JPEG", exif=exif_bytes)}


@pytest.mark.parametrize("format", sorted(whole_files()))
def test_what_was_cut_off_is_refused(format: str) -> None:
    data = whole_files()[format]
    assert look_at(data).size == (80, 64)
    for share in (0.3, 0.6, 0.9):
        words = refused(data[: int(len(data) * share)])
        assert "cut off" in words or (format == "AVIF" and "no picture" in words), share


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"/>',
        b"prompt: a fox\n" * 40,
        b"\x00" * 4096,
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data: bytes) -> None:
    assert "no picture that can be read (PNG, JPEG" in refused(data)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1, 1), "at least 16 pixels"),
        ((600, 15), "at least 16 pixels"),
        ((60_000, 16), f"at most {MAX_SIDE} pixels"),
        ((9000, 9000), "million in all"),
        ((12_000, 12_000), "million in all"),
        ((60_000, 60_000), "far too large"),
    ],
)
def test_sizes_are_refused_by_the_head_of_the_file(size: tuple[int, int], words: str) -> None:
    assert words in refused(png_claiming(*size))


def test_the_largest_that_is_taken_costs_less_than_300_mb() -> None:
    program = """if True:
        import io, resource, sys
        from PIL import Image
        from watcher.pictures.source import MAX_PIXELS, look_at
        side = int(MAX_PIXELS ** 0.5)
        data = sys.stdin.buffer.read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        look_at(data)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    side = int(MAX_PIXELS**0.5)
    for format in ("PNG", "TIFF"):
        data = written(Image.new("RGB", (side, side), "teal"), format, **_packed(format))
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
        assert int(done.stdout) < 300_000, done.stderr


def _packed(format: str) -> dict[str, Any]:
    return {"compression": "tiff_lzw"} if format == "TIFF" else {"compress_level": 1}
