"""The recipe inside a picture: ours and A1111's, written, read, taken out, and abused."""

import gc
import io
import json
import re
import struct
import time
import tracemalloc
import uuid
import zlib
from typing import Any

import pytest
from conftest import SECONDS
from hypothesis import HealthCheck, example, given, settings, strategies as st
from PIL import Image

from watcher.jobs import SUFFIXES, Job, JobRequest, JobState, Priority
from watcher.pictures import recipe
from watcher.pictures.container import NotAPicture, scan, strip
from watcher.pictures.outputs import encode
from watcher.pictures.recipe import DETAILS, again, read_recipe, recipe_of

FORMATS = sorted(SUFFIXES)
INFO: dict[str, Any] = {
    "model": "Tongyi-MAI/Z-Image-Turbo",
    "revision": "f332072aa78be7aecdf3ee76d5c247082da564a6",
    "device": "cuda:0",
    "dtype": "bfloat16",
    "attention": "native",
    "versions": {"torch": "2.13.0+cpu", "diffusers": "0.42.1"},
    "details": {"tier": "resident", "quantize": "none", "tf32": False, "tiled": True, "calls": 8},
    "forwards": 8,
    "sampler": "Euler",
    "schedule": "Simple",
    "cfg_scale": 1,
}
PROMPT = 'a fox, "red": <b>&amp; \\ 狐狸 🦊\nsecond line, Steps: 3'


def job_of(**fields: Any) -> Job:
    values: dict[str, Any] = {
        "prompt": PROMPT, "width": 64, "height": 48, "num_inference_steps": 9, "seed": 7,
    } | fields  # fmt: skip
    request = JobRequest(**values)
    suffix = SUFFIXES[request.format or "png"]
    return Job(
        seq=1, id=str(uuid.uuid4()), ticket="t", index=0, state=JobState.GENERATING, rev=1,
        request=request, image_name="ImgGen_120000", folder="20260101",
        path=f"20260101/ImgGen_120000{suffix}", priority=Priority.NORMAL, created_at=0, attempt=1,
        forwards=max(1, (request.num_inference_steps or 1) - 1),
    )  # fmt: skip


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 48)).convert("RGB")


def made(format: str = "png", info: dict[str, Any] = INFO, **fields: Any) -> tuple[Job, bytes]:
    job = job_of(format=format, **fields)
    return job, encode(picture(), format, recipe_of(job, info, {"denoise": 1.25}))


# -- round trip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "no", "negative_prompt": 'blurry: very, "bad"', "guidance_scale": 2.5},
        {"prompt": "\x00\x07\x7f\x85\u2028\ufffe\uffff tail", "label": "row 7"},
        {"prompt": "☃" * 4000, "negative_prompt": "🦊" * 4000},
        {"metadata": {"a": 1, "b": None, "c": 0.5, "d": True, "e": "x"}, "key": "k", "folder": "f"},
    ],
)
def test_what_is_written_is_read_back(format: str, fields: dict[str, Any]) -> None:
    job, data = made(format, **fields)
    found = read_recipe(data)
    assert found is not None
    assert JobRequest.model_validate(found["request"]) == job.request
    assert found["job_id"] == job.id
    assert found["image_name"] == job.image_name
    assert (found["seed"], found["forwards"]) == (7, 8)
    assert found["model"] == INFO["model"]
    assert found["versions"].items() >= INFO["versions"].items()
    assert {name: found.get(name) for name in (*DETAILS, "calls")} == {
        "tier": "resident", "tiled": True, **dict.fromkeys(
            ("quantize", "tf32", "compiled", "calls")
        ),
    }  # fmt: skip
    assert found["timings"] == {"denoise": 1.25}


@pytest.mark.parametrize("format", FORMATS)
def test_a_recipe_too_long_for_a_jpeg_leaves_the_metadata_out_and_says_so(format: str) -> None:
    job, data = made(format, metadata={"notes": "x" * 70_000})
    found = read_recipe(data)
    assert found is not None
    assert found["shortened"] is True
    expected = job.request.model_copy(update={"metadata": None})
    assert JobRequest.model_validate(found["request"]) == expected


def test_again_keeps_what_makes_the_picture_and_drops_what_named_the_job() -> None:
    _, data = made(name="fox", folder="a/b", key="k", priority="bulk", label="row 1")
    found = read_recipe(data)
    assert found is not None
    found["request"]["webhook"] = "https://hooks.example.com/a-strangers"
    assert again(found) == {
        "prompt": PROMPT, "width": 64, "height": 48, "num_inference_steps": 9, "seed": 7,
        "format": "png", "label": "row 1",
    }  # fmt: skip


def test_a_recipe_of_the_first_edition_makes_the_same_picture_again() -> None:
    old = {
        "job_id": "x", "image_name": "ImgGen_120000", "seed": 7, "forwards": 8, "model": "starter",
        "request": {"prompt": "a fox", "width": 64, "height": 48, "num_inference_steps": 9,
                    "guidance_scale": 2.5, "seed": 7, "format": "png", "count": 1},
    }  # fmt: skip
    kept = {name: value for name, value in old["request"].items() if name != "count"}
    assert again(old) == kept


def test_the_same_picture_and_recipe_give_the_same_bytes() -> None:
    job = job_of()
    for format in FORMATS:
        first = encode(picture(), format, recipe_of(job, INFO))
        assert encode(picture(), format, recipe_of(job, INFO)) == first


# -- A1111

#: How A1111 reads a settings line (its regex, as published).
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def as_a1111_reads(text: str) -> dict[str, str]:
    *_, last = text.strip().split("\n")
    found = A1111.findall(last)
    assert len(found) >= 3
    return {key: json.loads(v) if v.startswith('"') else v for key, v in found}


@pytest.mark.parametrize("format", FORMATS)
def test_a1111_and_its_kin_read_our_settings(format: str) -> None:
    _, data = made(format, info=INFO | {"model": "/srv/models/my, best: model"})
    with Image.open(io.BytesIO(data)) as image:
        if format == "png":
            text = image.text["parameters"]  # type: ignore[attr-defined]
        else:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment.startswith(b"UNICODE\x00")
            text = comment[8:].decode("utf-16-be")
    assert text.startswith(PROMPT)
    settings_read = as_a1111_reads(text)
    assert settings_read["Steps"] == "8"
    assert settings_read["Seed"] == "7"
    assert settings_read["Size"] == "64x48"
    assert settings_read["CFG scale"] == "1"
    assert settings_read["Model"] == "my, best: model"


THEIRS = (
    "a castle, masterpiece\nsecond line\nNegative prompt: blurry\nugly\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: abc, "
    'Lora hashes: "x: 1, y: 2", Version: v1.10.0'
)


def as_a1111_png(text: str, *, packed: bool = False) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", text, zip=packed)
    file = io.BytesIO()
    picture().save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize("text", [THEIRS, THEIRS.replace("castle", "城")])
@pytest.mark.parametrize("packed", [False, True])
def test_a_picture_of_a1111_becomes_a_request_of_ours(text: str, packed: bool) -> None:
    found = read_recipe(as_a1111_png(text, packed=packed))
    assert found is not None
    assert found["source"] == "a1111"
    assert found["parameters"] == text
    assert found["request"] == {
        "prompt": text.split("\nNegative")[0],
        "negative_prompt": "blurry\nugly",
        "seed": 123,
        "width": 512,
        "height": 768,
        "forwards": 20,
        "cfg_scale": 7.0,
    }


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le"])
def test_exif_of_either_byte_order_is_read(codec: str) -> None:
    for order, endian in (("MM", ">"), ("II", "<")):
        body = b"UNICODE\x00" + THEIRS.encode(codec)
        tiff = order.encode() + struct.pack(endian + "HL", 42, 8)
        tiff += struct.pack(endian + "HHHLLL", 1, 0x8769, 4, 1, 26, 0)
        tiff += struct.pack(endian + "HHHLLL", 1, 0x9286, 7, len(body), 44, 0) + body
        file = io.BytesIO()
        picture().save(file, "JPEG", exif=b"Exif\x00\x00" + tiff)
        found = read_recipe(file.getvalue())
        assert found is not None and found["request"]["seed"] == 123, (order, codec)


def test_a_prompt_that_looks_like_settings_stays_a_prompt() -> None:
    _, data = made(prompt="Steps: 1, Seed: 2, Size: 16x16\nNegative prompt: none")
    found = read_recipe(data)
    assert found is not None
    assert found["request"]["prompt"] == "Steps: 1, Seed: 2, Size: 16x16\nNegative prompt: none"
    assert found["request"]["seed"] == 7


def test_text_without_settings_is_no_recipe() -> None:
    assert read_recipe(as_a1111_png("just a caption\nof two lines")) is None
    assert read_recipe(as_a1111_png("a\nSampler: Euler, Seed: 3, Size: 1x1")) is None


# -- privacy

SECRETS = ("/home/alice", "alice", "workstation7", "C:\\Users", "10.0.0.5")


@pytest.mark.parametrize("format", FORMATS)
def test_no_path_host_or_user_gets_into_a_picture(format: str) -> None:
    info = {
        "model": "/home/alice/models/zit",
        "revision": "/home/alice/x",
        "device": "cuda:0@/home/alice",
        "dtype": "bfloat16",
        "attention": "C:\\Users\\alice",
        "versions": {"torch": "2.13", "/home/alice": "1", "host": "/home/alice"},
        "details": {"quantize": "nf4", "cwd": "/home/alice", "tier": "C:\\Users\\alice"},
        "host": "workstation7",
        "address": "10.0.0.5",
    }
    _, data = made(format, info=info, prompt="a fox")
    found = read_recipe(data)
    assert found is not None
    assert found["model"] == "zit"
    assert found["quantize"] == "nf4" and "tier" not in found
    for secret in SECRETS:
        assert secret.encode() not in data
        assert secret.encode("utf-16-be") not in data
        assert secret not in json.dumps(found)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo"),
        ("/c/hub/models--Tongyi-MAI--Z-Image-Turbo/snapshots/f33", "Tongyi-MAI/Z-Image-Turbo"),
        ("/srv/app/starter/model", "starter"),
        ("/usr/lib/python3/site-packages/watcher/starter_model", "starter"),
        ("/home/alice/zit/", "zit"),
        ("C:\\Users\\alice\\zit", "zit"),
        ("~/zit", "zit"),
        ("", ""),
    ],
)
def test_a_model_is_named_without_its_path(model: str, name: str) -> None:
    assert recipe.model_name(model) == name


@pytest.mark.parametrize("format", FORMATS)
def test_without_metadata_only_the_id_is_inside(format: str) -> None:
    job = job_of(format=format)
    data = encode(picture(), format, {"job_id": job.id})
    assert read_recipe(data) == {"job_id": job.id}
    assert scan(data).parameters is None
    assert b"fox" not in data and "fox".encode("utf-16-be") not in data


@pytest.mark.parametrize("format", FORMATS)
def test_strip_leaves_the_pixels_and_nothing_else(format: str) -> None:
    job, data = made(format)
    bare = strip(data)
    assert read_recipe(bare) is None
    assert job.id.encode() not in bare
    assert b"steady" not in bare and b"Exif" not in bare and b"parameters" not in bare
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(bare)) as after:
        after.load()
        assert after.format == before.format
        assert after.convert("RGB").tobytes() == before.convert("RGB").tobytes()
        assert not set(after.info) & {"exif", "xmp", "comment", "parameters", "steadydiffusion"}
    assert strip(bare) == bare


def test_strip_refuses_what_is_no_picture() -> None:
    with pytest.raises(NotAPicture):
        strip(b"GIF89a")


# -- abuse


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"WEBP"]
    for kind, data in chunks:
        parts += kind, struct.pack("<L", len(data)), data, bytes(len(data) & 1)
    body = b"".join(parts)
    return b"RIFF" + struct.pack("<L", len(body)) + body


BOMB = zlib.compress(b"a" * 60_000_000, 9)
SMALL_BOMB = zlib.compress(b"a" * 300_000, 9)
OURS = b"steadydiffusion\x00"
ZTXT = b"\x00" + BOMB
LOSSLESS = (b"VP8L", b"\x2f" + struct.pack("<L", 0) + bytes(9))
EXIF = b"MM\x00*" + struct.pack(">L", 8) + struct.pack(">H", 512) + b"\x00\x01" * 6 * 512

HOSTILE = {
    "pixel bomb": png(chunk(b"IDAT", BOMB), width=2**31 - 1, height=2**31 - 1),
    "packed text bomb": png(chunk(b"zTXt", OURS + ZTXT)),
    "packed international text bomb": png(chunk(b"iTXt", OURS + b"\x01\x00\x00\x00" + BOMB)),
    "thousands of packed bombs": png(
        *[chunk(b"zTXt", b"parameters\x00\x00" + SMALL_BOMB)] * 19_000
    ),
    "giant text": png(chunk(b"tEXt", OURS + b"{" + b" " * 30_000_000)),
    "deep JSON": png(chunk(b"tEXt", OURS + b"[" * 200_000)),
    "deep JSON objects": png(chunk(b"tEXt", OURS + b'{"request":' * 20_000)),
    "wide JSON": png(chunk(b"tEXt", OURS + b"[" + b"[]," * 80_000 + b"[]]")),
    "giant number": png(chunk(b"tEXt", OURS + b'{"request":' + b"9" * 200_000 + b"}")),
    "a million chunks": png(*[chunk(b"tIME", b"")] * 1_000_000),
    "length beyond the end": png()[:-12] + struct.pack(">L", 2**32 - 1) + b"IDAT",
    "no end": png()[:-12],
    "no header": b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
    "bad check sum": as_a1111_png(THEIRS).replace(b"castle", b"cattle"),
    "slow settings line": png(chunk(b"tEXt", b"parameters\x00" + b"a " * 120_000)),
    "slow quotes": png(chunk(b"tEXt", b"parameters\x00" + b'aa: "' * 1590)),
    "slow names": png(chunk(b"tEXt", b"parameters\x00" + b"a-b " * 1990 + b"Steps")),
    "thousand directories": webp(LOSSLESS, *[(b"EXIF", EXIF)] * 5000),
    "endless XMP": webp(LOSSLESS, (b"XMP ", b"<steady:recipe>" * 17_000)),
    "WebP of wrong length": webp(LOSSLESS)[:-1],
    "WebP without a picture": webp((b"EXIF", b"")),
    "JPEG that never scans": b"\xff\xd8" + b"\xff\xe1\x00\x02" * 1_000_000 + b"\xff\xd9",
    "JPEG of zero length": b"\xff\xd8\xff\xe1\x00\x00\xff\xd9",
    "empty": b"",
    "magic alone": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pictures_carry_nothing_and_cost_nothing(what: str) -> None:
    data = HOSTILE[what]
    gc.freeze()  # the collector's walk over what other tests left is not the picture's cost
    begun = time.process_time()
    assert read_recipe(data) is None
    spent = time.process_time() - begun
    gc.unfreeze()
    assert spent < SECONDS
    tracemalloc.start()
    read_recipe(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


@pytest.mark.parametrize("format", FORMATS)
def test_what_follows_a_picture_is_not_looked_at(format: str) -> None:
    _, data = made(format, prompt="a fox")
    assert read_recipe(data + b"PK\x03\x04" + bytes(100)) == read_recipe(data)
    assert read_recipe(data) is not None


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_picture_carries_nothing(format: str) -> None:
    _, data = made(format, prompt="a fox")
    for cut in range(0, len(data) - 1, max(1, len(data) // 200)):
        assert read_recipe(data[:cut]) is None


GOOD = {format: made(format)[1] for format in FORMATS}


@settings(max_examples=200, deadline=500, suppress_health_check=[HealthCheck.too_slow])
@given(
    base=st.sampled_from(FORMATS),
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)), max_size=6
    ),
)
def test_no_damage_makes_it_raise(base: str, cuts: list[tuple[float, int, bytes]]) -> None:
    data = GOOD[base]
    for where, length, new in cuts:
        at = int(where * len(data))
        data = data[:at] + new + data[at + length :]
    read_recipe(data)


@settings(max_examples=150, deadline=500)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff\xe1"]), st.binary())
def test_no_bytes_make_it_raise(magic: bytes, rest: bytes) -> None:
    read_recipe(magic + rest)


@settings(max_examples=150, deadline=500)
@given(text=st.text(max_size=3000))
@example(text='Steps: 1, Seed: ²³, Size: ١x٢, CFG scale: "')
@example(text='p\nSteps: 99999999999999999999, Seed: "\\ud800", Size: 0x0')
def test_no_parameters_text_makes_it_raise(text: str) -> None:
    recipe.request_of_parameters(text)
    recipe.request_of_parameters(f"{text}\nSteps: 1, Sampler: x, Seed: {text[:50]}, Size: 1x1")
    body = b"UNICODE\x00" + text.encode("utf-16-be", "surrogatepass")
    scan(as_exif_jpeg(body))


def as_exif_jpeg(comment: bytes) -> bytes:
    tiff = b"MM\x00*" + struct.pack(">L", 8)
    tiff += struct.pack(">HHHLLL", 1, 0x8769, 4, 1, 26, 0)
    tiff += struct.pack(">HHHLLL", 1, 0x9286, 7, len(comment), 44, 0) + comment
    segment = b"Exif\x00\x00" + tiff
    frame = struct.pack(">BHHB", 8, 8, 8, 0)
    return (
        b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame
        + b"\xff\xda\x00\x02\xff\xd9"
    )  # fmt: skip


@settings(max_examples=150, deadline=1000)
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    negative=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    seed=st.integers(0, 2**63 - 1),
    format=st.sampled_from(FORMATS),
)
def test_every_prompt_survives(prompt: str, negative: str | None, seed: int, format: str) -> None:
    job = job_of(prompt=prompt, negative_prompt=negative, seed=seed, format=format)
    data = encode(picture(), format, recipe_of(job, INFO))
    found = read_recipe(data)
    assert found is not None
    assert JobRequest.model_validate(found["request"]) == job.request
