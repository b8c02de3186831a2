"""An img2img body of the Stable Diffusion web UI: a txt2img body, and the picture it starts from.

Its clients send all of it always, at the web UI's own defaults: those work, and what has no effect
here is named in the warnings.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from api.bodies import fault
from api.compat.txt2img import Txt2ImgBody, plain_value, txt2img_of, whole_field
from watcher.limits import Card
from watcher.pictures.recipe import prompt_in
from watcher.upscaling import LANCZOS, MAX_FACTOR, MIN_FACTOR

#: What ``resize_mode`` says, by its number; 3 resizes what the model itself works on.
_RESIZE = ("stretch", "crop", "pad")
_STRENGTH = 0.75  #: where none is said
EXTRAS_LANCZOS = ("None", "Lanczos", "Nearest")  #: upscalers of theirs that are Lanczos here
_MOST_BLUR, _MOST_PADDING = 64, 512
_FROM_PICTURE = 1  #: ``inpainting_fill``: what is masked starts from what lies there
#: What else belongs to a picture that is started from, and the values that ask for nothing.
_IDLE: dict[str, tuple[Any, ...]] = {
    "image_cfg_scale": (None, 0, 1.5), "initial_noise_multiplier": (None, 1), "latent_mask": (None,),
    "include_init_images": (None, False, True), "mask_round": (None, True),
    "mask_blur_x": (None, 4), "mask_blur_y": (None, 4),
}  # fmt: skip
_READ = frozenset(
    {
        "init_images", "mask", "denoising_strength", "resize_mode", "mask_blur", "inpainting_fill",
        "inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert",
    }
)  # fmt: skip


def img2img_of(
    raw: Mapping[str, Any], card: Card, keep: Callable[[bytes, str], str]
) -> Txt2ImgBody:
    """An img2img body as our fields; ``keep`` puts the picture of a field away and says how a
    job names it.

    Raises SteadyError naming the field that cannot be used.
    """
    own = {name: raw[name] for name in raw.keys() & (_READ | _IDLE.keys())}
    asked = txt2img_of({k: v for k, v in raw.items() if k not in own}, card)
    pictures, mask = own.pop("init_images", None), own.pop("mask", None)
    own = {name: plain_value(value) for name, value in own.items()}
    if not isinstance(pictures, list) or len(pictures) != 1:
        raise fault("out_of_range", "init_images", "must hold one picture as base64")
    warnings = list(asked.warnings)
    fields: dict[str, Any] = {
        "resize": _resize_of(own),
        "strength": _strength_of(own),
        "image": keep(picture_in(pictures[0], "init_images"), "init_images"),
    }
    if mask is not None:
        fields |= _masked(own, warnings) | {"mask": keep(picture_in(mask, "mask"), "mask")}
    for name, idle in _IDLE.items():
        if own.get(name) not in idle:
            warnings.append(f"{name} has no effect here.")
    return replace(asked, fields=asked.fields | fields, warnings=tuple(warnings))


def extras_of(raw: Mapping[str, Any], keep: Callable[[bytes, str], str]) -> Txt2ImgBody:
    """An extra-single-image body as our fields: the picture is made larger as it is."""
    data = picture_in(raw.get("image"), "image")
    factor = plain_value(raw.get("upscaling_resize") or 2)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise fault("wrong_type", "upscaling_resize", "must be a number")
    near = min(max(float(factor), MIN_FACTOR), MAX_FACTOR)
    warnings = (
        [] if near == factor else [f"upscaling_resize: {near:g} is used instead of {factor:g}."]
    )
    method = str(raw.get("upscaler_1") or "None")
    method = LANCZOS if method in EXTRAS_LANCZOS else method
    fields = {
        "prompt": prompt_in(data) or "a picture",
        "image": keep(data, "image"),
        "upscale": {"factor": near, "method": method},
    }
    return Txt2ImgBody(fields, tuple(warnings), send_images=True)


def _resize_of(own: Mapping[str, Any]) -> str:
    mode = whole_field(own, "resize_mode") or 0
    if not 0 <= mode < len(_RESIZE):
        remedy = "must be 0 (stretch), 1 (crop) or 2 (fill); 3 is not supported"
        raise fault("out_of_range", "resize_mode", remedy)
    return _RESIZE[mode]


def _strength_of(own: Mapping[str, Any]) -> float:
    strength = own.get("denoising_strength")
    if strength is None:
        return _STRENGTH
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not 0 < strength <= 1:
        words = "must be above 0 and at most 1: with 0 the picture stays as it is"
        raise fault("out_of_range", "denoising_strength", words)
    return float(strength)


def _masked(own: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """What is said about the mask."""
    fields: dict[str, Any] = {
        "mask_invert": bool(whole_field(own, "inpainting_mask_invert")),
        "mask_only": bool(own.get("inpaint_full_res", True)),
    }
    for name, ours, most in (
        ("mask_blur", "mask_blur", _MOST_BLUR),
        ("inpaint_full_res_padding", "mask_padding", _MOST_PADDING),
    ):
        said = whole_field(own, name) or 0
        fields[ours] = min(max(said, 0), most)
        if fields[ours] != said:
            warnings.append(f"{name}: {fields[ours]} is used instead of {said}.")
    if (whole_field(own, "inpainting_fill") or 0) != _FROM_PICTURE:
        warnings.append(
            "inpainting_fill: what is masked starts from the picture (1), as nothing else is known."
        )
    return fields


def picture_in(value: Any, name: str) -> bytes:
    """The bytes of a picture that came as base64, also as a data URI. SteadyError without one."""
    if not isinstance(value, str):
        raise fault("wrong_type", name, "must be a picture as base64")
    try:
        data = base64.b64decode(re.sub(r"^data:[^,]{0,100},", "", value))
    except (binascii.Error, ValueError):
        raise fault("out_of_range", name, "is no picture as base64") from None
    if not data:
        raise fault("out_of_range", name, "is empty")
    return data
