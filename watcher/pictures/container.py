"""The outside of a picture file: PNG, WebP and JPEG, looked over without decoding a pixel.

Says a picture's format, size and the texts it carries, takes all texts out, puts a person's
rating in, and makes the EXIF and XMP blocks that carry them. Pictures that come here may be from strangers, so no
image library is called and every length is bounded before it is used.

Pure: bytes in, bytes and values out. Knows nothing of files, jobs or what the texts say.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from xml.sax.saxutils import escape

#: Longest text that is read out of a picture, in bytes. Ours have some hundred to 40,000.
MAX_TEXT = 256 * 1024
_MAX_PARTS = 20_000  #: chunks or segments in one picture

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\x00"
_NAMESPACE = "https://steadydiffusion.invalid/recipe/1.0/"
_OURS_IN_XMP = re.compile(rb"<steady:recipe>([^<]*)</steady:recipe>")

_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769


class NotAPicture(ValueError):
    """The bytes are no whole PNG, WebP or JPEG."""


@dataclass(frozen=True)
class PictureFile:
    """What the outside of a picture tells without decoding it. Sides are pixels."""

    format: str  #: png | webp | jpeg
    width: int
    height: int
    ours: bytes | None  #: our JSON, as found
    parameters: str | None  #: A1111's text, as found


def scan(data: bytes) -> PictureFile:
    """Look over a whole picture without decoding it.

    Raises NotAPicture for anything that is not exactly one complete PNG (all check sums
    right, nothing behind its end), WebP or JPEG. Time and memory are bounded by the length
    of ``data`` and by 256 KB for a text.
    """
    try:
        if data.startswith(_PNG):
            return _scan_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _scan_webp(data)
        if data[:3] == b"\xff\xd8\xff":
            return _scan_jpeg(data)
    except (struct.error, IndexError):
        raise NotAPicture("truncated") from None
    raise NotAPicture("neither PNG, WebP nor JPEG")


def unpadded(data: bytes) -> bytes:
    """``data`` up to the end of the picture, where that can be told. Pads are common: some
    programs and cameras write something behind it."""
    if data.startswith(_PNG):
        end = data.rfind(b"IEND\xaeB`\x82")
        return data if end < 0 else data[: end + 8]
    if data[:4] == b"RIFF" and len(data) >= 12:
        return data[: 8 + int.from_bytes(data[4:8], "little")]
    end = data.rfind(b"\xff\xd9") if data[:3] == b"\xff\xd8\xff" else -1
    return data if end < 0 else data[: end + 2]


def strip(data: bytes) -> bytes:
    """The same picture, number for number, without any text, EXIF, XMP or comment.

    Colour profiles go too, so a stranger's picture may look otherwise. Raises NotAPicture as
    :func:`scan` does.
    """
    picture = scan(data)
    return {"png": _strip_png, "webp": _strip_webp, "jpeg": _strip_jpeg}[picture.format](data)


def with_rating(data: bytes, rating: int) -> bytes:
    """The same picture with ``rating`` (-1 to 5) as XMP:Rating, which catalogues of photographs
    read; the recipe inside stays.

    Raises NotAPicture as :func:`scan` does.
    """
    picture = scan(data)
    if picture.format == "png":  # our recipe is in a chunk of its own
        chunk = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp_of(None, rating)
        at = len(_PNG) + 25  # behind IHDR
        length, check = struct.pack(">L", len(chunk) - 4), struct.pack(">L", zlib.crc32(chunk))
        return data[:at] + length + chunk + check + data[at:]
    ours = None if picture.ours is None else picture.ours.decode("utf-8", "replace")
    packet = xmp_of(ours, rating)
    return (_jpeg_with if picture.format == "jpeg" else _webp_with)(data, packet, picture)


# -- PNG


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk's data; NotAPicture unless it ends with one IEND."""
    view = memoryview(data)
    at = len(_PNG)
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + 8 + length
        (check,) = struct.unpack_from(">L", data, end)
        if zlib.crc32(view[at + 4 : end]) != check:
            raise NotAPicture("a check sum is wrong")
        yield kind, at + 8, end
        at = end + 4
        if kind == b"IEND":
            if at != len(data):
                raise NotAPicture("something follows the picture")
            return
    raise NotAPicture("too many chunks")


def _scan_png(data: bytes) -> PictureFile:
    width = height = 0
    # The first text of each name counts, readable or not: a thousand of them cost no more.
    texts: dict[bytes, bytes | None] = {}
    for kind, start, end in _png_chunks(data):
        if kind == b"IHDR":
            width, height = struct.unpack_from(">LL", data, start)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = data[start : min(end, start + 80)].split(b"\x00", 1)[0]
            if keyword in (b"steadydiffusion", b"parameters") and keyword not in texts:
                small = end - start <= MAX_TEXT
                texts[keyword] = _png_text(kind, data[start:end], len(keyword)) if small else None
    if not width or not height:
        raise NotAPicture("no size")
    parameters = texts.get(b"parameters")
    text = None if parameters is None else parameters.decode("utf-8", "replace")
    return PictureFile("png", width, height, texts.get(b"steadydiffusion"), text)


def _png_text(kind: bytes, chunk: bytes, keyword: int) -> bytes | None:
    """The text of one chunk as UTF-8; None when it is damaged or unpacks to too much."""
    body = chunk[keyword + 1 :]
    if kind == b"tEXt":
        return body.decode("latin-1").encode()
    if kind == b"zTXt":
        unpacked = _unpacked(body[1:])
        return None if unpacked is None else unpacked.decode("latin-1").encode()
    if len(body) < 4:
        return None
    packed, rest = body[0], body[2:].split(b"\x00", 2)
    if len(rest) < 3:
        return None
    return _unpacked(rest[2]) if packed else rest[2]


def _unpacked(packed: bytes) -> bytes | None:
    machine = zlib.decompressobj()
    try:
        text = machine.decompress(packed, MAX_TEXT)
    except zlib.error:
        return None
    return text if machine.eof else None


#: Chunks that are the picture itself or say how to show it.
_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT"}


def _strip_png(data: bytes) -> bytes:
    parts = [data[s - 8 : e + 4] for kind, s, e in _png_chunks(data) if kind in _PNG_KEPT]
    return _PNG + b"".join(parts)


# -- WebP


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk's data; NotAPicture unless the lengths add up."""
    (size,) = struct.unpack_from("<L", data, 4)
    if size + 8 != len(data):
        raise NotAPicture("truncated, or something follows the picture")
    at = 12
    for _ in range(_MAX_PARTS):
        if at == len(data):
            return
        kind, length = struct.unpack_from("<4sL", data, at)
        end = at + 8 + length
        if end + (length & 1) > len(data):
            raise NotAPicture("truncated")
        yield kind, at + 8, end
        at = end + (length & 1)
    raise NotAPicture("too many chunks")


def _scan_webp(data: bytes) -> PictureFile:
    width = height = 0
    seen: set[bytes] = set()
    ours: bytes | None = None
    parameters: str | None = None
    for kind, start, end in _webp_chunks(data):
        if kind in seen:
            continue
        seen.add(kind)
        if kind == b"VP8X":
            width = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            height = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif kind == b"VP8 ":
            if not width:
                width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L":
            if not width:
                (bits,) = struct.unpack_from("<L", data, start + 1)
                width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"EXIF" and end - start <= MAX_TEXT:
            parameters = _user_comment(data[start:end].removeprefix(b"Exif\x00\x00"))
        elif kind == b"XMP " and end - start <= MAX_TEXT:
            ours = _ours_in_xmp(data[start:end])
    if not seen & {b"VP8 ", b"VP8L"} or not width or not height:
        raise NotAPicture("no picture inside")
    return PictureFile("webp", width, height, ours, parameters)


def _strip_webp(data: bytes) -> bytes:
    parts = []
    for kind, start, end in _webp_chunks(data):
        if kind == b"VP8X":
            flags = data[start] & ~0x0C  # the bits that announce EXIF and XMP
            parts.append(data[start - 8 : start] + bytes([flags]) + data[start + 1 : end])
        elif kind in (b"VP8 ", b"VP8L", b"ALPH"):
            parts.append(data[start - 8 : end] + bytes(end - start & 1))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def _webp_with(data: bytes, packet: bytes, picture: PictureFile) -> bytes:
    """The file with this XMP in place of its own."""
    chunks = {kind: data[start:end] for kind, start, end in reversed([*_webp_chunks(data)])}
    alpha = 0x10 if b"VP8L" in chunks and chunks[b"VP8L"][4] & 0x10 else 0
    sides = [(side - 1).to_bytes(3, "little") for side in (picture.width, picture.height)]
    head = chunks.pop(b"VP8X", bytes([alpha, 0, 0, 0]) + b"".join(sides))
    kept = {b"VP8X": bytes([head[0] | 0x04]) + head[1:]} | dict(reversed(chunks.items()))
    body = b"WEBP" + b"".join(
        struct.pack("<4sL", kind, len(chunk)) + chunk + bytes(len(chunk) & 1)
        for kind, chunk in (kept | {b"XMP ": packet}).items()
    )
    return b"RIFF" + struct.pack("<L", len(body)) + body


# -- JPEG


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment's data up to and with the first scan header."""
    if not data.endswith(b"\xff\xd9"):
        raise NotAPicture("truncated, or something follows the picture")
    at = 2
    for _ in range(_MAX_PARTS):
        lead, marker, length = struct.unpack_from(">BBH", data, at)
        if lead != 0xFF or marker in (0x00, 0xD8, 0xD9, 0xFF) or length < 2:
            raise NotAPicture("not a JPEG")
        end = at + 2 + length
        if end > len(data):
            raise NotAPicture("truncated")
        yield marker, at + 4, end
        at = end
        if marker == 0xDA:
            return
    raise NotAPicture("too many segments")


def _scan_jpeg(data: bytes) -> PictureFile:
    width = height = 0
    seen: set[bytes] = set()
    ours: bytes | None = None
    parameters: str | None = None
    for marker, start, end in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, start + 1)
        elif marker == 0xE1 and data[start : start + 6] not in seen:
            seen.add(data[start : start + 6])
            if data.startswith(b"Exif\x00\x00", start, end):
                parameters = _user_comment(data[start + 6 : end])
            elif data.startswith(_XMP_JPEG, start, end):
                ours = _ours_in_xmp(data[start + len(_XMP_JPEG) : end])
    if not width or not height:
        raise NotAPicture("no size")
    return PictureFile("jpeg", width, height, ours, parameters)


def _strip_jpeg(data: bytes) -> bytes:
    parts = [data[:2]]
    rest = 2
    for marker, start, end in _jpeg_segments(data):
        # APP0 is JFIF's density, APP14 says how the colours are stored; the rest is talk.
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            parts.append(data[start - 4 : end])
        rest = end
    return b"".join(parts) + data[rest:]


def _jpeg_with(data: bytes, packet: bytes, _picture: PictureFile) -> bytes:
    """The file with this XMP in place of its own; one that has no room for it stays as it is."""
    if len(packet) + len(_XMP_JPEG) + 2 > 0xFFFF:
        return data
    before, rest = [data[:2]], 2
    after: list[bytes] = []
    for marker, start, end in _jpeg_segments(data):
        if not (marker == 0xE1 and data.startswith(_XMP_JPEG, start, end)):
            (before if marker == 0xE0 else after).append(data[start - 4 : end])
        rest = end
    segment = struct.pack(">BBH", 0xFF, 0xE1, len(_XMP_JPEG) + len(packet) + 2)
    return b"".join([*before, segment, _XMP_JPEG, packet, *after]) + data[rest:]


# -- EXIF and XMP


def exif_of(parameters: str) -> bytes:
    """A minimal EXIF block whose UserComment is ``parameters`` (UTF-16, as A1111 writes it)."""
    comment = b"UNICODE\x00" + parameters.encode("utf-16-be", "replace")
    entry = struct.Struct(">HHLL")
    main = struct.pack(">H", 1) + entry.pack(_EXIF_IFD, 4, 1, 26) + bytes(4)
    inner = struct.pack(">H", 1) + entry.pack(_USER_COMMENT, 7, len(comment), 44) + bytes(4)
    return b"Exif\x00\x00" + b"MM\x00*" + struct.pack(">L", 8) + main + inner + comment


def xmp_of(text: str | None, rating: int = 0) -> bytes:
    """An XMP packet that carries ``text``, our JSON, and a person's rating, where there are any."""
    recipe = f"<steady:recipe>{escape(text)}</steady:recipe>" if text is not None else ""
    rated = f"<xmp:Rating>{rating}</xmp:Rating>" if rating else ""
    names = ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"' if rating else ""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:steady="{_NAMESPACE}"{names}>'
        f"{recipe}{rated}"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _user_comment(tiff: bytes) -> str | None:
    """The UserComment of an EXIF block; None when there is none or the block is odd."""
    order = {b"MM": ">", b"II": "<"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (main,) = struct.unpack_from(order + "L", tiff, 4)
        inner = _tag(tiff, order, main, _EXIF_IFD)
        found = inner and _tag(tiff, order, inner[1], _USER_COMMENT)
    except struct.error:
        return None
    if not found:
        return None
    length, at = found
    comment = tiff[at : at + length]
    if len(comment) != length:
        return None
    head, body = comment[:8], comment[8:]
    if head == b"UNICODE\x00":
        # Which end comes first is not said anywhere: A1111 writes big-endian, others follow
        # the block. The one that shows a settings line is right.
        codecs = ["utf-16-be", "utf-16-le"] if order == ">" else ["utf-16-le", "utf-16-be"]
        texts = [body.decode(codec, "replace") for codec in codecs]
        return next((text for text in texts if "Steps: " in text), texts[0])
    return body.decode("utf-8", "replace").strip("\x00")


def _tag(tiff: bytes, order: str, at: int, wanted: int) -> tuple[int, int] | None:
    """(length, offset) that entry ``wanted`` of the directory at ``at`` names."""
    (entries,) = struct.unpack_from(order + "H", tiff, at)
    for index in range(min(entries, 512)):
        tag, _, length, offset = struct.unpack_from(order + "HHLL", tiff, at + 2 + 12 * index)
        if tag == wanted:
            return length, offset
    return None


def _ours_in_xmp(packet: bytes) -> bytes | None:
    found = _OURS_IN_XMP.search(packet)
    return None if found is None else unescape(found[1].decode("utf-8", "replace")).encode()
