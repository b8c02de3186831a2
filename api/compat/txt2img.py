"""A txt2img body of the Stable Diffusion web UI, read as the fields of a job.

What those clients always send was meant for other models: it is clamped and mapped, and the
warnings say how; what would change the picture in ways we have not is refused by name.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.bodies import fault, whole
from watcher.jobs import MAX_GUIDANCE, MAX_STEPS
from watcher.limits import Card
from watcher.upscaling import MAX_FACTOR, MIN_FACTOR, REFINE

AUTOMATIC = "Automatic"  #: the web UI's word for what the model has of its own
MAX_IMAGES = 100  #: batch_size x n_iter of one call

#: Fields that change the picture in ways we have not: refused when they are used.
_REFUSED = ("script_name", "alwayson_scripts", "init_images", "mask")
#: Values of the other fields that ask for nothing; anything else is named in the warnings.
_IDLE: dict[str, tuple[Any, ...]] = {
    "restore_faces": (False,), "tiling": (False,), "styles": ([],), "subseed": (-1,),
    "subseed_strength": (0, -1), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1),
    "refiner_checkpoint": ("",), "refiner_switch_at": (0, 1), "s_min_uncond": (0,),
    "s_churn": (0,), "s_tmax": (0,), "s_tmin": (0,), "s_noise": (1, 0), "eta": (1, 0),
    "clip_skip": (1, 0), "firstphase_width": (0,), "firstphase_height": (0,), "comments": ({},),
    "override_settings": ({},), "hr_prompt": ("",), "hr_negative_prompt": ("",),
}  # fmt: skip
#: Said without a word: no effect here or there, or only together with what is refused.
_SILENT = frozenset(
    {
        "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards",
        "save_images", "send_images", "denoising_strength", "hr_scale", "hr_upscaler", "enable_hr",
        "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
        "hr_sampler_name", "hr_scheduler", "script_args", "force_task_id",
        "disable_extra_networks", "infotext", *_REFUSED,
    }
)  # fmt: skip
_READ = frozenset(
    {
        "prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "seed", "batch_size",
        "n_iter", "sampler_name", "sampler_index", "scheduler",
    }
)  # fmt: skip


_TEXTS = frozenset(
    {
        "prompt", "negative_prompt", "sampler_name", "sampler_index", "scheduler", "script_name",
        "refiner_checkpoint", "hr_prompt", "hr_negative_prompt", "infotext", "force_task_id",
    }
)  # fmt: skip
#: LoRAs and their kin, which are asked for inside a prompt there and are no part of its text.
_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>\n:]{1,200})((?::[^<>\n]{0,50})?)>")


@dataclass(frozen=True)
class Txt2ImgBody:
    """A txt2img body, read: our fields, and what of it was changed or has no effect."""

    fields: dict[str, Any]
    warnings: tuple[str, ...]
    send_images: bool


def txt2img_of(raw: Mapping[str, Any], card: Card) -> Txt2ImgBody:
    """A txt2img body as our fields. Raises SteadyError naming the field that cannot be used."""
    raw = {name: value if name in _TEXTS else plain_value(value) for name, value in raw.items()}
    for name in _REFUSED:
        if raw.get(name):
            raise fault("out_of_range", name, "is not supported: leave it out")
    warnings: list[str] = []
    fields = _prompt_and_loras(_text_field(raw, "prompt") or "", warnings)
    negative = _text_field(raw, "negative_prompt")
    if negative and negative.strip():
        fields["negative_prompt"] = negative
    _sides(raw, card, fields, warnings)
    _steps(raw, card, fields, warnings)
    _take_guidance(raw, card, fields, warnings)
    if raw.get("enable_hr"):
        fields["upscale"] = _hires(raw, fields, warnings)
    count = (whole_field(raw, "batch_size") or 1) * (whole_field(raw, "n_iter") or 1)
    if not 1 <= count <= MAX_IMAGES:
        raise fault("out_of_range", "batch_size", f"times `n_iter` must be 1..{MAX_IMAGES}")
    seed = whole_field(raw, "seed")
    # Chosen here, so that the pictures of one call have seeds that follow each other.
    fields |= {"seed": secrets.randbelow(2**32) if seed in (None, -1) else seed, "count": count}
    settings = raw.get("override_settings")
    if isinstance(settings, Mapping):
        settings = {k: v for k, v in settings.items() if k != "sd_model_checkpoint"}
        wanted = settings.pop("samples_format", None)
        if wanted in ("png", "webp", "jpeg", "jpg"):
            fields["format"] = "jpeg" if wanted == "jpg" else wanted
    ours = " ".join(words_of(card))
    known = {"", "automatic", ours.lower(), *ours.lower().split(" ")}
    for name in ("sampler_name", "sampler_index", "scheduler"):
        said = _text_field(raw, name) or ""
        if said.lower() not in known:
            warnings.append(f"{name}: {ours} is used instead of {said[:60]!r}.")
    for name, value in ({**raw, "override_settings": settings or {}}).items():
        usual = (None, *_IDLE.get(name, ()))
        if name not in _READ and name not in _SILENT and value not in usual:
            warnings.append(f"{str(name)[:60]} has no effect here.")
    return Txt2ImgBody(
        fields, tuple(dict.fromkeys(warnings))[:30], raw.get("send_images") is not False
    )


def words_of(card: Card) -> tuple[str, str]:
    """What the model's sampler and schedule are called."""
    return card.sampler or AUTOMATIC, card.schedule or AUTOMATIC


def _sides(raw: Mapping[str, Any], card: Card, fields: dict[str, Any], warnings: list[str]) -> None:
    """The nearest size that the model makes; its own for a side that is not said."""
    width, height = (
        whole_field(raw, name) or usual
        for name, usual in (("width", card.default_width), ("height", card.default_height))
    )
    near = card.fitted(width, height)
    for name, side, ours in zip(("width", "height"), (width, height), near, strict=True):
        fields[name] = ours
        if ours != side:
            warnings.append(f"{name}: {ours} is used instead of {side}.")


def _steps(raw: Mapping[str, Any], card: Card, fields: dict[str, Any], warnings: list[str]) -> None:
    """Forwards, as the web UI counts them. A distilled model gains nothing from more of them."""
    asked = whole_field(raw, "steps")
    usual = card.forwards(card.default_steps)
    if asked is None or asked <= 0:
        asked = usual
    most = card.forwards(MAX_STEPS) if card.takes("guidance") else usual
    steps = min(asked, most)
    if steps != asked:
        warnings.append(f"steps: {steps} are used instead of {asked}; more do not help this model.")
    fields["num_inference_steps"] = card.steps(steps)


def _take_guidance(
    raw: Mapping[str, Any], card: Card, fields: dict[str, Any], warnings: list[str]
) -> None:
    """What CFG scale is no guidance at all depends on the model."""
    scale = raw.get("cfg_scale")
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < 1e6:
        raise fault("wrong_type", "cfg_scale", "must be a number from 0 on")
    if card.takes("guidance"):
        fields["guidance_scale"] = min(card.guidance(scale), MAX_GUIDANCE)
    elif scale > 1:
        warnings.append(f"cfg_scale: 1 is used instead of {scale:g}; this model has no guidance.")


def _hires(
    raw: Mapping[str, Any], fields: Mapping[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """The web UI's second pass: its scale, or the width it names, and its denoising strength."""
    wanted = {"hr_scale": 2.0, "denoising_strength": 0.7, "hr_resize_x": 0}
    for name, usual in wanted.items():
        value = raw.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise fault("wrong_type", name, "must be a number")
        wanted[name] = usual if value is None else value
    asked = wanted["hr_resize_x"] / fields["width"] or wanted["hr_scale"]
    factor = min(max(asked, MIN_FACTOR), MAX_FACTOR)
    if factor != asked:
        warnings.append(f"hr_scale: {factor:g} is used instead of {asked:g}.")
    if str(raw.get("hr_upscaler") or "None").lower() not in ("none", "lanczos", "latent"):
        warnings.append("hr_upscaler: Lanczos enlarges, then the model redraws.")
    strength = min(max(wanted["denoising_strength"], 0.01), 1.0)
    return {"factor": float(factor), "method": REFINE, "strength": float(strength)}


def plain_value(value: Any) -> Any:
    """A number or a truth value that came as text, as the web UI takes them."""
    if not isinstance(value, str) or len(value) > 40:
        return value
    text = value.strip().lower()
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?\d*\.?\d+", text, re.ASCII) else value


def _prompt_and_loras(prompt: str, warnings: list[str]) -> dict[str, Any]:
    """The prompt as the web UI gives it to a model, and the LoRAs it names.

    Of two weights the second is the one of the part that draws.
    """
    loras: dict[str, dict[str, Any]] = {}
    for kind, name, rest in _NETWORK.findall(prompt):
        weight = rest.rpartition(":")[2].strip().removeprefix("unet=") or "1"
        if kind == "hypernet" or not re.fullmatch(r"[+-]?\d{0,3}\.?\d{1,9}", weight, re.ASCII):
            tag = f"<{kind}:{name}{rest}>"[:80]
            warnings.append(f"{tag} was left out of the prompt: it is no LoRA with a weight.")
        else:
            loras.setdefault(name, {"name": name, "weight": float(weight)})
    named = {"lora": list(loras.values())} if loras else {}
    return {"prompt": _NETWORK.sub("", prompt)} | named


def whole_field(raw: Mapping[str, Any], name: str) -> int | None:
    """A whole number of the body; None when unset. SteadyError wrong_type for anything else."""
    value = raw.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JavaScript and pydantic make no difference either
    return whole({name: value}, name)


def _text_field(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise fault("wrong_type", name, "must be a text")
    return value
