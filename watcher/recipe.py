"""The recipe inside a picture: written for our own pictures, read from anybody's.

Two texts travel in every picture: ``parameters``, the one line of settings that A1111 and
every tool after it reads, and ``steadydiffusion``, our own JSON with the whole request. PNG
carries both in text chunks; WebP and JPEG carry the first in EXIF UserComment and the
second in XMP.

Pure: bytes in, values out. Pictures that are read here may come from strangers, so no
pixel is decoded, no image library is called, and every length is bounded before it is used.
Knows nothing of files, models or the record.
"""

import itertools
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from importlib import metadata
from typing import Any

from watcher.jobs import MAX_SEED, Job, forwards_of

#: Longest text that is read out of a picture, in bytes. Ours have some hundred to 40,000.
MAX_TEXT = 256 * 1024
#: Longest settings line of an A1111 text; its regex is quadratic, so longer ones are not read.
_MAX_SETTINGS = 8000
_MAX_PARTS = 20_000  #: chunks or segments in one picture
_MAX_XMP = 65_000  #: one JPEG segment

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\x00"
_NAMESPACE = "https://steadydiffusion.invalid/recipe/1.0/"
_OURS_IN_XMP = re.compile(rb"<steady:recipe>([^<]*)</steady:recipe>")

_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769

#: What of the engine's own ``details`` a recipe may repeat: things that change pixels.
_DETAILS = ("tiling", "compile", "offload", "quantization", "tier")
#: Request fields that make a picture, as against those that name, order or hold back a job.
_MAKES = (
    "prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "seed",
    "format",
    "label",
    "metadata",
)

_SETTING = re.compile(r'\s*(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


class NotAPicture(ValueError):
    """The bytes are no whole PNG, WebP or JPEG."""


@dataclass(frozen=True)
class Picture:
    """What the outside of a picture tells without decoding it. Sides are pixels."""

    format: str  #: png | webp | jpeg
    width: int
    height: int
    ours: bytes | None  #: our JSON, as found
    parameters: str | None  #: A1111's text, as found


# -- writing


def recipe_of(
    job: Job, info: Mapping[str, Any], timings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything needed to make this picture again, and nothing about who made it where.

    ``info`` is an EngineInfo as a mapping, ``timings`` seconds by phase. Only named members
    are taken from either, and of a model folder only its last name, so that no path, host
    or user name can get into a picture.
    """
    details = info.get("details")
    details = details if isinstance(details, Mapping) else {}
    recipe: dict[str, Any] = {
        "job_id": job.id,
        "image_name": job.image_name,
        "request": job.request.model_dump(mode="json"),
        "seed": job.request.seed,
        "forwards": forwards_of(job.request.num_inference_steps or 1),
        "model": model_name(str(info.get("model") or "")) or None,
        "revision": _word(info.get("revision")),
        "versions": _versions() | _words(info.get("versions")),
        "device": _word(info.get("device")),
        "dtype": _word(info.get("dtype")),
        "attention": _word(info.get("attention")),
    }
    for name in _DETAILS:
        value = info.get(name, details.get(name))
        if isinstance(value, bool | int) or _word(value):
            recipe[name] = value
    recipe["timings"] = {
        name: round(value, 4)
        for name, value in (timings or {}).items()
        if isinstance(value, int | float) and _word(name)
    }
    return recipe


def model_name(model: str) -> str:
    """A hub name as it is, also out of a hub cache's path; of a folder only its last part."""
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", model):
        return model
    parts = [part for part in re.split(r"[\\/]", model) if part]
    for repository, snapshots in itertools.pairwise(parts):
        if repository.startswith("models--") and snapshots == "snapshots":
            return repository.removeprefix("models--").replace("--", "/", 1)
    if parts[-2:] == ["starter", "model"] or parts[-1:] == ["starter_model"]:
        return "starter"
    return parts[-1].lstrip("~.") if parts else ""


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as A1111 writes it, so that its regex and all tools after it read it.

    A1111 counts forwards where ``num_inference_steps`` counts one more, and its CFG scale 1
    is no guidance at all, our 0.
    """
    request = recipe["request"]
    settings = {
        "Steps": recipe["forwards"],
        "Sampler": "Euler",
        "Schedule type": "Simple",
        "CFG scale": f"{1 + (request.get('guidance_scale') or 0):g}",
        "Seed": recipe["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Model": str(recipe.get("model") or "unknown").rsplit("/", 1)[-1].lower(),
        "Version": "SteadyDiffusion",
    }
    lines = [_printable(request["prompt"])]
    if request.get("negative_prompt"):
        lines.append("Negative prompt: " + _printable(request["negative_prompt"]))
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """Our JSON on one line: UTF-8 may carry it, XML may carry it, control characters escaped."""
    text = json.dumps(recipe, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub(
        "[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text
    )


def exif_of(parameters: str) -> bytes:
    """A minimal EXIF block whose UserComment is ``parameters`` (UTF-16, as A1111 writes it)."""
    comment = b"UNICODE\x00" + parameters.encode("utf-16-be", "replace")
    entry = struct.Struct(">HHLL")
    main = struct.pack(">H", 1) + entry.pack(_EXIF_IFD, 4, 1, 26) + bytes(4)
    inner = struct.pack(">H", 1) + entry.pack(_USER_COMMENT, 7, len(comment), 44) + bytes(4)
    return b"Exif\x00\x00" + b"MM\x00*" + struct.pack(">L", 8) + main + inner + comment


def fitting(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe as every format can carry it: 64 KB, the most one JPEG segment holds.

    Of a longer one the ``metadata`` a person attached is left out and ``shortened`` says so;
    what makes the picture always fits.
    """
    if len(xmp_of(recipe)) <= _MAX_XMP or "request" not in recipe:
        return recipe
    return {**recipe, "request": {**recipe["request"], "metadata": None}, "shortened": True}


def xmp_of(recipe: Mapping[str, Any]) -> bytes:
    """An XMP packet that carries our JSON."""
    text = recipe_json(recipe)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:steady="{_NAMESPACE}">'
        f"<steady:recipe>{text}</steady:recipe>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _printable(text: str) -> str:
    """Without the control characters a text chunk may not carry (line ends and tabs stay)."""
    text = text.replace("\r\n", "\n")
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _quoted(value: Any) -> str:
    text = _printable(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search('[,:\n"]', text) else text


def _word(value: Any) -> str | None:
    """A short plain word such as ``cuda:0`` or ``2.13.0+cpu``; None for anything else."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.:+ -]{1,100}", value) else None


def _words(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(k): v for k, v in items if _word(k) and _word(v)}


def _versions() -> dict[str, str]:
    try:
        return {"steadydiffusion": metadata.version("steadydiffusion")}
    except metadata.PackageNotFoundError:
        return {}


# -- reading


def read_recipe(data: bytes) -> dict[str, Any] | None:
    """The recipe inside a PNG, WebP or JPEG, or None: never raises, whatever the bytes are.

    Ours comes back as it was written (see :func:`recipe_of`; a picture made with
    ``embed_metadata: false`` gives ``{"job_id": …}`` alone). A picture of A1111 and its kin
    comes back as ``{"source": "a1111", "request": {…}, "parameters": text}`` with the
    request in our fields. Values are as found: the caller validates them like any other
    request. A truncated, padded or otherwise odd picture counts as carrying nothing.
    """
    try:
        picture = scan(data)
    except NotAPicture:
        return None
    ours = _json_of(picture.ours)
    if ours is not None and isinstance(ours.get("request"), dict):
        return ours
    if picture.parameters is not None:
        request = request_of_parameters(picture.parameters)
        if request is not None:
            return {"source": "a1111", "request": request, "parameters": picture.parameters}
    return ours


def job_id_in(picture: Picture) -> str | None:
    """The id of the job of ours that made this picture, if it says so."""
    found = (_json_of(picture.ours) or {}).get("job_id")
    return found if isinstance(found, str) else None


def again(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The request fields that make the same picture again.

    Without those that named, grouped, ordered or keyed the first one (name, folder, key,
    count, priority, not_before): the new picture is a new job.
    """
    request = recipe.get("request")
    request = request if isinstance(request, Mapping) else {}
    fields = {name: request[name] for name in _MAKES if request.get(name) is not None}
    if fields.get("seed") is None and isinstance(recipe.get("seed"), int):
        fields["seed"] = recipe["seed"]
    return fields


def request_of_parameters(text: str) -> dict[str, Any] | None:
    """A1111's ``parameters`` text as our request fields; None when it is none.

    Steps count forwards there, so ``num_inference_steps`` is one more; CFG scale 1 is our
    guidance 0. Settings that mean nothing here (sampler, clip skip, hashes) are left out.
    """
    *lines, last = text.strip().split("\n")
    if len(last) > _MAX_SETTINGS:
        return None
    settings = {name.strip(): _unquoted(value) for name, value in _SETTING.findall(last)}
    if len(settings) < 3 or "Steps" not in settings:
        return None
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            target = negative
            line = line.removeprefix("Negative prompt:").strip()
        target.append(line)
    request: dict[str, Any] = {"prompt": "\n".join(prompt)}
    if any(negative):
        request["negative_prompt"] = "\n".join(negative)
    steps = _whole(settings.get("Steps"))
    if steps:
        request["num_inference_steps"] = steps + 1
    seed = _whole(settings.get("Seed"))
    if seed is not None and seed <= MAX_SEED:
        request["seed"] = seed
    size = _SIZE.fullmatch(settings.get("Size", ""))
    if size:
        request["width"], request["height"] = int(size[1]), int(size[2])
    scale = re.fullmatch(r"\d{1,3}(\.\d{1,6})?", settings.get("CFG scale", ""))
    if scale and float(scale[0]) > 1:
        request["guidance_scale"] = float(scale[0]) - 1
    return request


def scan(data: bytes) -> Picture:
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


def strip(data: bytes) -> bytes:
    """The same picture, pixel for pixel, without any text, EXIF, XMP or comment.

    Raises NotAPicture as :func:`scan` does.
    """
    picture = scan(data)
    return {"png": _strip_png, "webp": _strip_webp, "jpeg": _strip_jpeg}[picture.format](data)


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


def _scan_png(data: bytes) -> Picture:
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
    return Picture("png", width, height, texts.get(b"steadydiffusion"), text)


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


def _scan_webp(data: bytes) -> Picture:
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
    return Picture("webp", width, height, ours, parameters)


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


def _scan_jpeg(data: bytes) -> Picture:
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
    return Picture("jpeg", width, height, ours, parameters)


def _strip_jpeg(data: bytes) -> bytes:
    parts = [data[:2]]
    rest = 2
    for marker, start, end in _jpeg_segments(data):
        # APP0 is JFIF's density, APP14 says how the colours are stored; the rest is talk.
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            parts.append(data[start - 4 : end])
        rest = end
    return b"".join(parts) + data[rest:]


# -- EXIF, XMP, texts


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


def _json_of(text: bytes | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def _whole(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"\d{1,19}", value, re.ASCII) else None
