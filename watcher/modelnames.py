"""What models and LoRAs are called: by jobs, where people write them, and in answers.

Pure: words alone. Which of them are here, models/ knows.
"""

import itertools
import re
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

MAX_LORAS = 4  #: of one job


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


class LoraChoice(TypedDict):
    """One LoRA of a job: a file below `loras/` by its path without suffix, and how strongly.

    `sha256` of the file: set when the job is recorded; given, it must be that very file.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    name: Annotated[str, Field(min_length=1, max_length=200)]
    weight: Annotated[
        float, Field(ge=-2, le=2, allow_inf_nan=False, json_schema_extra={"default": 1})
    ]
    sha256: NotRequired[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]


_WEIGHED = re.compile(r"(.+):\s*([+-]?(?:\d{1,3}(?:\.\d{0,9})?|\.\d{1,9}))", re.ASCII | re.DOTALL)


def lora_choices(said: Any) -> Any:
    """``ink``, ``ink:0.8, neon``, mappings, or a list of these: as LoraChoices in order of name.

    What is none of them stays as it is, for the schema to refuse. ValueError: a name said twice.
    """
    parts = said if isinstance(said, list | tuple) else [said]
    found: list[Any] = []
    for part in parts:
        words = isinstance(part, str) and (part.strip() or part is said)
        texts = [t for t in part.split(",") if t.strip()] if words else [part]
        found += [_lora_choice(each) for each in texts]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in found):
        return found
    names = [each["name"] for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"`lora` names `{twice[:60]}` twice.")
    return sorted(found, key=lambda each: str(each["name"]))


def _lora_choice(said: Any) -> Any:
    if isinstance(said, str):
        weighed = _WEIGHED.fullmatch(said.strip())
        said = {"name": weighed[1], "weight": float(weighed[2])} if weighed else {"name": said}
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return said
    name = said["name"].strip().removesuffix(".safetensors")
    return {"weight": 1.0} | said | {"name": name}


def lora_words(said: Any) -> str:
    """The LoRAs of a job as a person writes them: ``ink, neon:0.5``; ``none`` without any."""
    try:
        found = lora_choices([] if said is None else said)
        return (
            ", ".join(c["name"] + f":{c['weight']:g}" * (c["weight"] != 1) for c in found) or "none"
        )
    except (LookupError, TypeError, ValueError):  # no LoRAs at all: the schema says so
        return "none"


LORA_SCHEMA = {
    "type": "array",
    "maxItems": MAX_LORAS,
    "items": {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 200, "examples": ["ink", "ink:0.8"]},
            TypeAdapter(LoraChoice).json_schema() | {"required": ["name"]},
        ]
    },
}
