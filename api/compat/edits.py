"""``/v1/images/edits`` and ``variations`` as OpenAI's clients send them: forms that carry pictures.

Read into the fields of a generations body and, beside them, what a job says of the picture it
starts from. What is transparent in a mask is repainted, as there.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from api.bodies import fault, media_type
from api.compat.txt2img import plain_value
from watcher.errors import SteadyError
from watcher.jobs import text_fields
from watcher.pictures.recipe import prompt_in
from watcher.pictures.source import clear_in, look_at

MAX_FORM = 140 << 20  #: bytes: a picture, a mask and a few words

_MOST_FILES, _MOST_FIELDS = 17, 60
_WORDS = text_fields() | {"user", "size", "response_format", "quality", "background"}
_NOT_SAID = "a picture"  #: of a picture to be varied that carries no recipe

#: Puts a picture that came in a field away, and says how a job names it. Raises SteadyError.
Keep = Callable[[bytes, str], str]


async def read_form(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The fields and the files of a form, by name. Raises SteadyError bad_content_type."""
    if media_type(request) != "multipart/form-data":
        raise SteadyError("bad_content_type", remedy="Send multipart/form-data.")
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            elif name in _WORDS:
                fields[name] = value
            else:
                fields[name] = plain_value(value)
    return fields, files


def edit_of(files: Mapping[str, list[bytes]], keep: Keep) -> tuple[dict[str, Any], list[str]]:
    """What a job says of the pictures of an edit, and the warnings.

    Without a mask the transparent part of the picture is one. Raises SteadyError naming the field
    that cannot be used.
    """
    picture, warnings = _only(files, "image"), list[str]()
    fields = {"image": keep(picture, "image")}
    masks = files.get("mask", [])
    clear = clear_in(picture) if not masks else _repainted(_only(files, "mask"), picture)
    if clear is not None:
        fields["mask"] = keep(clear, "mask")
        if not masks:
            warnings.append("There is no mask, so what is transparent in `image` is painted anew.")
    return fields, warnings


def variation_of(
    raw: dict[str, Any], files: Mapping[str, list[bytes]], keep: Keep
) -> tuple[dict[str, Any], list[str]]:
    """The same for a variation, whose prompt is that of the picture's recipe."""
    picture, warnings = _only(files, "image"), list[str]()
    fields = {"image": keep(picture, "image")}
    if not raw.get("prompt"):
        said = prompt_in(picture)
        raw["prompt"] = said or _NOT_SAID
        if not said:
            warnings.append(
                "The picture carries no recipe that says what it shows; a `prompt` would help."
            )
    return fields, warnings


def _repainted(mask: bytes, picture: bytes) -> bytes:
    """The mask as ours: white where theirs is transparent."""
    try:
        clear, size = clear_in(mask), look_at(mask).size
    except SteadyError as error:
        raise fault(error.code, "mask", error.message.rstrip(".")) from None
    if clear is None:
        words = "has nothing transparent: what is to be painted anew must be"
        raise fault("out_of_range", "mask", words)
    if size != look_at(picture).size:
        raise fault("out_of_range", "mask", "must have the size of `image`")
    return clear


def _only(files: Mapping[str, list[bytes]], name: str) -> bytes:
    found = files.get(name, [])
    if len(found) != 1:
        code = "out_of_range" if found else "missing_field"
        raise fault(code, name, "must be one picture")
    return found[0]
