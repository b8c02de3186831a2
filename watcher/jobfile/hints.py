"""What to write instead: the allowed ranges in words, and what other programs call a field.

Knows nothing of files or validation.
"""

import difflib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from watcher.jobfile.naming import MAX_NAME, MAX_SEGMENTS
from watcher.jobs import MAX_PROMPT, JobRequest, field_schemas, text_fields
from watcher.modelnames import MAX_LORAS
from watcher.upscaling import MAX_FACTOR, MAX_LARGE_SIDE, MIN_FACTOR, MULTIPLE

if TYPE_CHECKING:
    from watcher.limits import Card

FIELDS: tuple[str, ...] = tuple(JobRequest.model_fields)
#: Keys that are read as fields of ours, as people bring them along.
SPELLINGS = {
    "steps": "num_inference_steps",
    "checkpoint": "model",
    "sd_model_checkpoint": "model",
    "loras": "lora",
    "init_image": "image",
    "mask_image": "mask",
    "denoising_strength": "strength",
    "denoise": "strength",
    "callback_url": "webhook",
    "webhook_url": "webhook",
}
_MEANT = dict(zip(FIELDS, FIELDS, strict=True)) | SPELLINGS
_TEXTS = text_fields()
#: Keys whose value is free text or read from text: an unquoted YAML value stays text.
TEXT_FIELDS = {key for key, field in _MEANT.items() if field in _TEXTS} | {"size"}
#: Keys that say a whole number.
WHOLE = frozenset(k for k, f in _MEANT.items() if field_schemas()[f].get("type") == "integer")
#: Every key of a job.
KNOWN = frozenset({*FIELDS, *SPELLINGS, "size"})
MAX_METADATA = 50  #: names
MAX_METADATA_TEXT = 4000  #: characters of all names and values together

#: Keys of a whole file, beside its jobs.
BATCH_KEYS = frozenset(
    {"defaults", "jobs", "matrix", "zip", "sample", "expand", "on_error", "key", "resume", "count"}
)


#: What other programs and people call our fields.
_ALSO_CALLED = {
    "prompt": "text description caption positive positive_prompt prompts input content",
    "negative_prompt": "negative neg neg_prompt negativeprompt uc undesired negative_text",
    "num_inference_steps": "num_steps step sampling_steps inference_steps n_steps iterations",
    "guidance_scale": "cfg cfg_scale guidance scale cfgscale guidance_rescale distilled_cfg",
    "count": "n batch_size n_iter num_images num_images_per_prompt images batch_count batch "
    "samples num_samples runs repeat repeats times copies num_outputs amount number",
    "model": "model_name ckpt ckpt_name base_model sd_model",
    "upscale": "upscaler hr_scale upscale_factor upscale_by enlarge",
    "size": "resolution dimensions image_size dims wxh output_size",
    "width": "w image_width",
    "height": "h image_height",
    "seed": "noise_seed random_seed seeds rng_seed",
    "name": "filename file_name output output_name outfile out image_name save_as title",
    "folder": "output_dir dir directory out_dir outdir path subfolder output_folder album",
    "format": "output_format ext extension file_format image_format type filetype suffix",
    "priority": "prio urgency order",
    "not_before": "schedule run_at at start start_at delay after when scheduled_at",
    "lora": "adapter adapters lora_name lora_names lycoris",
    "label": "id custom_id tag tags row_id ref reference",
    "metadata": "meta extra extras user info data",
    "key": "idempotency_key idempotencykey request_id unique_id",
    "webhook": "callback hook notify_url",
}
_NAMES_FOR = {also: ours for ours, names in _ALSO_CALLED.items() for also in names.split()}

#: What others have and we have not, with the reason.
_NOT_HERE = {
    "prompts": "Write `prompt:` for one job, or list several under `jobs:`.",
    "sampler sampler_name sampler_index scheduler scheduler_type sampling_method": (
        "The model comes with one sampler and one schedule; remove it."
    ),
    "aspect_ratio aspect ar ratio": "Give `width` and `height`, or `size: 1024x768`.",
    "init_images image_url image_urls url": (
        "Write `image:` with the name of a picture that is here; addresses are never fetched."
    ),
    "notify": "Who is notified stands in config.yaml; one job's own address is its `webhook`.",
    "quality hd style response_format background moderation": (
        "Only the OpenAI door (/v1) takes it; remove it."
    ),
    "clip_skip vae eta tiling restore_faces enable_hr hires_fix": (
        "This model has no such thing; remove it."
    ),
}
_REASONS = {name: why for names, why in _NOT_HERE.items() for name in names.split()}


def plain_key(name: str) -> str:
    """A column or key as we would write it: ``Negative Prompt`` is ``negative_prompt``."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


@lru_cache(maxsize=1024)
def meant_by(key: str) -> str | None:
    """The field of ours that ``key`` is taken to mean, from other programs' names or a typing slip."""
    plain = plain_key(key[:60])
    if plain in KNOWN:
        return plain
    if plain in _NAMES_FOR:
        return _NAMES_FOR[plain]
    if plain in _REASONS:
        return None
    near = difflib.get_close_matches(plain[:30], KNOWN, n=1, cutoff=0.75)
    return near[0] if near else None


def advice_for(key: str) -> str:
    """What to write instead of an unknown ``key``, in one sentence."""
    plain = plain_key(key[:60])
    if plain in _REASONS:
        return _REASONS[plain]
    if plain in BATCH_KEYS - {"key", "count"}:
        return f"`{plain}` belongs to the whole file, beside `jobs`."
    ours = meant_by(key[:60])
    if ours is None:
        near = difflib.get_close_matches(plain[:30], sorted(BATCH_KEYS), n=1, cutoff=0.7)
        if near:
            return f"Did you mean `{near[0]}`, beside the jobs?"
        few = difflib.get_close_matches(plain[:30], FIELDS, n=3, cutoff=0.5)
        nearest = f"nearest: {', '.join(f'`{name}`' for name in few)}; " if few else ""
        return f"Remove it; {nearest}`steady submit --help` and docs/job-files.md list every field."
    if plain in _NAMES_FOR:
        return f"Here it is called `{ours}`" + (
            ", e.g. `size: 1024x768`." if ours == "size" else "."
        )
    return f"Did you mean `{ours}`?"


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
}


def allowed_for(field: str, card: "Card") -> str:
    """The allowed range of ``field`` in words."""
    sides = f"{card.min_side}..{card.max_side} in steps of {MULTIPLE}"
    special = {
        "prompt": f"text of 1 to {MAX_PROMPT} characters",
        "width": sides,
        "height": sides,
        "size": f"WIDTHxHEIGHT, each {sides}, at most {card.max_pixels} pixels",
        "name": f"letters, digits, `.`, `_`, `-`, at most {MAX_NAME}; not first `.` or `-`",
        "folder": f"1 to {MAX_SEGMENTS} names with `/` between them",
        "not_before": "date and time, e.g. 2026-11-23T22:00 or 2026-11-23T22:00+01:00",
        "lora": f"at most {MAX_LORAS} of NAME, NAME:WEIGHT or {{name, weight}}, weights -2..2",
        "upscale": f"FACTOR {MIN_FACTOR:g}..{MAX_FACTOR:g}, then perhaps refine, lanczos or a file of upscalers/; "
        f"or a mapping of factor, method, strength and tile; at most {MAX_LARGE_SIDE} pixels a side",
        "metadata": f"mapping of at most {MAX_METADATA} names to text, numbers, true/false or null, "
        f"{MAX_METADATA_TEXT} characters in all",
    }
    return special.get(field) or schema_words(field_schemas()[field])


def schema_words(said: dict[str, Any]) -> str:
    """What a schema allows."""
    if "enum" in said:
        return ", ".join(said["enum"])
    if "exclusiveMinimum" in said:
        return f"number above {said['exclusiveMinimum']:g}, at most {said['maximum']:g}"
    if said.get("type") == "string":
        least, most = said.get("minLength"), said.get("maxLength")
        if most is None:
            return "text"
        return (
            f"text of {least} to {most} characters"
            if least
            else f"text of at most {most} characters"
        )
    if said.get("type") == "array":
        most = f" of at most {said['maxItems']}" if "maxItems" in said else ""
        return f"list{most}, each {schema_words(said['items'])}"
    if said.get("type") == "object":
        return f"mapping of names to {schema_words(said['additionalProperties'])}"
    kind = kind_of(said)
    if "maximum" in said and "minimum" in said:
        return f"{kind}, {said['minimum']:g}..{said['maximum']}"
    return kind


def kind_of(said: dict[str, Any]) -> str:
    """The type of what a schema says, in words."""
    return _KINDS.get(said.get("type", ""), "text, number, true/false or null")
