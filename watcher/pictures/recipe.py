"""The recipe inside a picture: written for our own pictures, read from anybody's.

Two texts travel in every picture: ``parameters``, the one line of settings that A1111 and
every tool after it reads, and ``steadydiffusion``, our own JSON with the whole request. PNG
carries both in text chunks; WebP and JPEG carry the first in EXIF UserComment and the
second in XMP.

Pure: bytes in, values out. How the texts lie inside a picture is container.py's business.
Knows nothing of files, models or the record.
"""

import functools
import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from watcher.jobs import PICTURE_FIELDS, Job, JobRequest, input_digest
from watcher.modelnames import model_name
from watcher.pictures.container import NotAPicture, PictureFile, scan, unpadded, xmp_of
from watcher.program import installed_version

#: Longest settings line of an A1111 text; its regex is quadratic, so longer ones are not read.
_MAX_SETTINGS = 8000
_MOST_BELOW = 20  #: lines that some programs write below the settings, and one
_MAX_XMP = 65_000  #: one JPEG segment

#: What of the engine's own ``details`` a recipe repeats where it is on: things that change pixels.
DETAILS = ("tier", "quantize", "tf32", "compiled", "tiled")
#: Request fields that name, group, order or hold back a job, or say who is told of it (a stranger's
#: picture must not say that); all others make its picture.
_PLACES = frozenset({"name", "folder", "key", "count", "priority", "not_before", "webhook"})
_MAKES = tuple(field for field in JobRequest.model_fields if field not in _PLACES)

_SETTING = re.compile(r'\s*(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


# -- writing


def recipe_of(
    job: Job, info: Mapping[str, Any], timings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything needed to make this picture again, and nothing about who made it where.

    ``info`` is an EngineInfo as a mapping with the Result's facts on top, ``timings`` seconds by
    phase. Only named members are taken from either, and of a model folder only its last name, so
    that no path, host or user name can get into a picture.
    """
    request = job.request.model_dump(mode="json", exclude={"webhook"})  # nobody else's
    for name in PICTURE_FIELDS:  # by what they are; how a person calls them is nobody's affair
        digest = input_digest(request[name])
        request[name] = f"sha256:{digest}" if digest else None
    details = info.get("details")
    details = details if isinstance(details, Mapping) else {}
    guided = "guidance" in info.get("accepts", ())
    recipe: dict[str, Any] = {
        "job_id": job.id,
        "image_name": job.image_name,
        "request": request,
        "seed": job.request.seed,
        "forwards": _finite(info.get("forwards", job.forwards)),
        "size": list(job.request.final_size),
        "sampler": _plain_word(info.get("sampler")),
        "schedule": _plain_word(info.get("schedule")),
        "cfg_scale": _finite(info.get("cfg_scale", job.request.guidance_scale if guided else None)),
        "model": model_name(str(info.get("model") or "")) or None,
        "revision": _plain_word(info.get("revision")),
        "versions": _versions() | _version_words(info.get("versions")),
        "device": _plain_word(info.get("device")),
        "dtype": _plain_word(info.get("dtype")),
        "attention": _plain_word(info.get("attention")),
    }
    for name in DETAILS:
        value = info.get(name, details.get(name))
        if value is True or _plain_word(value) not in (None, "none"):
            recipe[name] = value
    if loras := _loras_used(job.request, info.get("loras")):
        recipe["loras"] = loras
    recipe["timings"] = {
        name: round(value, 4)
        for name, value in (timings or {}).items()
        if _finite(value) is not None and _plain_word(name)
    }
    return recipe


def _loras_used(request: JobRequest, said: Any) -> list[dict[str, Any]]:
    """Name, weight and digests of each LoRA; of an engine that says nothing, what was asked for."""
    asked = [each for each in request.lora or () if each["weight"]]
    used = [each for each in said if isinstance(each, Mapping)] if isinstance(said, list) else asked
    known = {each["name"] for each in asked}
    return [
        {
            "name": each["name"],
            "weight": _finite(each.get("weight")),
            "sha256": _plain_word(each.get("sha256")),
            "tensors_sha256": _plain_word(each.get("tensors_sha256")),
        }
        for each in used
        if each.get("name") in known
    ]


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as A1111 writes it, so that its regex and all tools after it read it.

    What the engine did not say is left out.
    """
    request = recipe["request"]
    cfg_scale = recipe.get("cfg_scale")
    settings = {
        "Steps": recipe["forwards"],
        "Sampler": recipe.get("sampler"),
        "Schedule type": recipe.get("schedule"),
        "CFG scale": None if cfg_scale is None else f"{cfg_scale:g}",
        "Seed": recipe["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Lora hashes": _lora_hashes(recipe),
        **_larger(request),
        "Model": str(recipe.get("model") or "unknown").rsplit("/", 1)[-1].lower(),
        "Version": "SteadyDiffusion",
    }
    lines = [_without_controls(request["prompt"])]
    if request.get("negative_prompt"):
        lines.append("Negative prompt: " + _without_controls(request["negative_prompt"]))
    said = [f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None]
    lines.append(", ".join(said))
    return "\n".join(lines)


def _lora_hashes(recipe: Mapping[str, Any]) -> str | None:
    """``ink: 0123456789ab``: what tells a LoRA's tensors apart, as A1111 writes it."""
    hashes = [(e["name"], e.get("tensors_sha256")) for e in recipe.get("loras", ())]
    return ", ".join(f"{name}: {digest[:12]}" for name, digest in hashes if digest) or None


def _larger(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the web UI says of an input, and of a second pass."""
    upscale = request.get("upscale") or {}
    if upscale:
        strength = upscale.get("strength")
        what = {"Hires upscale": f"{upscale['factor']:g}", "Hires upscaler": upscale.get("method")}
    else:
        strength, what = request.get("strength") if request.get("image") else None, {}
    return {"Denoising strength": None if strength is None else f"{strength:g}", **what}


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """Our JSON on one line: UTF-8 may carry it, XML may carry it, control characters escaped."""
    text = json.dumps(recipe, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub(
        "[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text
    )


def fitting(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe as every format can carry it: 64 KB, the most one JPEG segment holds.

    Of a longer one the ``metadata`` a person attached is left out and ``shortened`` says so;
    what makes the picture always fits.
    """
    if len(xmp_of(recipe_json(recipe))) <= _MAX_XMP or "request" not in recipe:
        return recipe
    return {**recipe, "request": {**recipe["request"], "metadata": None}, "shortened": True}


def _without_controls(text: str) -> str:
    """Without the control characters a text chunk may not carry (line ends and tabs stay)."""
    text = text.replace("\r\n", "\n")
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _quoted(value: Any) -> str:
    text = _without_controls(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search('[,:\n"]', text) else text


def _plain_word(value: Any) -> str | None:
    """A short plain word such as ``cuda:0`` or ``2.13.0+cpu``; None for anything else."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.:+ -]{1,100}", value) else None


def _finite(value: Any) -> int | float | None:
    """A finite number; None for anything else."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return value if sound else None


def _version_words(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(k): v for k, v in items if _plain_word(k) and _plain_word(v)}


@functools.cache
def _versions() -> dict[str, str]:
    version = installed_version()
    return {"steadydiffusion": version} if version else {}


# -- reading


def read_recipe(data: bytes) -> dict[str, Any] | None:
    """The recipe inside a PNG, WebP or JPEG, or None: never raises, whatever the bytes are.

    Ours comes back as it was written (see :func:`recipe_of`; a picture made with ``embed_metadata:
    false`` gives ``{"job_id": …}`` alone). A picture of A1111 and its kin comes back as
    ``{"source": "a1111", "request": {…}, "parameters": text}`` with the request as
    :func:`request_of_parameters` reads it. Values are as found: the caller validates them like any
    other request. What follows the picture is not looked at; a truncated or otherwise odd one
    counts as carrying nothing.
    """
    try:
        picture = scan(unpadded(data))
    except NotAPicture:
        return None
    ours = _json_of(picture.ours)
    if ours is not None:
        ours.pop("source", None)  # whoever writes one is not us
    if ours is not None and isinstance(ours.get("request"), dict):
        return ours
    if picture.parameters is not None:
        request = request_of_parameters(picture.parameters)
        if request is not None:
            return {"source": "a1111", "request": request, "parameters": picture.parameters}
    return ours


def prompt_in(data: bytes) -> str | None:
    """The prompt that the recipe inside a picture names; None without one."""
    said = again(read_recipe(data) or {}).get("prompt")
    return said if isinstance(said, str) and said.strip() else None


def job_id_in(picture: PictureFile) -> str | None:
    """The id of the job of ours that made this picture, if it says so."""
    found = (_json_of(picture.ours) or {}).get("job_id")
    return found if isinstance(found, str) else None


def again(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The request fields that make the same picture again.

    Without those that named, grouped, ordered or keyed the first one, or had somebody told of it
    (name, folder, key, count, priority, not_before, webhook): the new picture is a new job.
    """
    request = recipe.get("request")
    request = request if isinstance(request, Mapping) else {}
    fields = {name: request[name] for name in _MAKES if request.get(name) is not None}
    if fields.get("seed") is None and isinstance(recipe.get("seed"), int):
        fields["seed"] = recipe["seed"]
    return fields


def request_of_parameters(text: str) -> dict[str, Any] | None:
    """A1111's ``parameters`` text as our request fields; None when it is none.

    Its steps are under ``forwards`` and its CFG scale under ``cfg_scale``: what they are in a
    request depends on the model. Settings that mean nothing here (sampler, clip skip, hashes) are
    left out, and so is what stands below the settings. A seed may be larger than ours.
    """
    lines = text.strip().split("\n")
    settings: dict[str, str] = {}
    for number in reversed(range(max(0, len(lines) - _MOST_BELOW), len(lines))):
        if "Steps:" in lines[number] and len(lines[number]) <= _MAX_SETTINGS:
            found = _SETTING.findall(lines[number])
            settings = {name.strip(): _bare_value(value) for name, value in found}
            if len(settings) >= 3 and "Steps" in settings:
                del lines[number:]
                break
    else:
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
    steps = _whole_text(settings.get("Steps"))
    if steps:
        request["forwards"] = steps
    seed = _whole_text(settings.get("Seed"))
    if seed is not None:
        request["seed"] = seed
    size = _SIZE.fullmatch(settings.get("Size", ""))
    if size:
        request["width"], request["height"] = int(size[1]), int(size[2])
    scale = re.fullmatch(r"\d{1,3}(\.\d{1,6})?", settings.get("CFG scale", ""))
    if scale:
        request["cfg_scale"] = float(scale[0])
    return request


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


def _bare_value(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def _whole_text(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"\d{1,20}", value, re.ASCII) else None
