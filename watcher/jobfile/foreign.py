"""What other programs write: read where the meaning is certain, else named in a warning.

Prompt lines and generation data of the Stable Diffusion web UI and of trainers, workflows of
ComfyUI, marks in prompts that mean something elsewhere and are drawn as text here. What such a
program asks for is brought within our limits, with a warning for each change: nobody can edit a
number inside a picture. Knows nothing of files.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from watcher.jobs import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from watcher.limits import Limits
from watcher.pictures.recipe import request_of_parameters

_HELD = 30  #: lines a pasted prompt may have
_LONGEST = 16_000  #: characters of a line with options; no two texts that are taken fill it

#: An option of a web UI's prompt line -> our field, or empty: without effect here.
_OPTIONS = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "seed": "seed", "steps": "steps",
    "cfg_scale": "cfg", "width": "width", "height": "height", "n_iter": "count",
    "batch_size": "count", "sampler_name": "", "sampler_index": "", "sd_model": "", "styles": "",
    "restore_faces": "", "tiling": "", "do_not_save_samples": "", "do_not_save_grid": "",
    "outpath_samples": "", "outpath_grids": "", "prompt_for_display": "",
}  # fmt: skip
#: The same of a trainer's sample lines, behind the prompt.
_SHORT = {
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "steps",
    "l": "cfg",
}

_MARKS = re.compile(
    r"(?P<option>(?:^|\s)--[A-Za-z][\w-]*)|(?P<file><(?:lora|lyco|lycoris|hypernet):)"
    r"|(?P<weight>[(\[][^()\[\]]*:\s*(?:\d+(?:\.\d+)?|\.\d+)\s*[)\]])|(?P<part>(?:^|\s)BREAK(?=\s|$))"
)
_WORDS = {
    "option": "Options in a prompt, such as `{}`, are drawn as text here; give `size`, `seed` and "
    "the like as fields.",
    "file": "`{}…>` in a prompt is drawn as text here; remove it.",
    "weight": "Weights in a prompt, such as `{}`, are drawn as text here; say it in words.",
    "part": "`{}` in a prompt is drawn as text here; write one prompt.",
}


class Marks:
    """What of other programs' syntax the prompts of one file hold, each kind told once."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._said: dict[str, None] = {}
        self._read: list[int] = []  #: the first line read as another program's
        self._more = -1  #: and how many more were

    def read(self, line: int) -> None:
        """Notes that ``line`` was read as another program's settings."""
        self._read = self._read or [line]
        self._more += 1

    def say(self, warning: str) -> None:
        """Notes ``warning``, one of the first twenty."""
        if len(self._said) < 20:
            self._said[warning] = None

    def look(self, prompt: str) -> None:
        """Notes what ``prompt`` holds."""
        if not ("--" in prompt or "<" in prompt or ":" in prompt or "BREAK" in prompt):
            return  # as most of a million
        for match in _MARKS.finditer(prompt):
            self._found.setdefault(str(match.lastgroup), match[0].strip()[:40])

    @property
    def warnings(self) -> list[str]:
        """One for each kind found so far."""
        more = f" and {self._more} more" if self._more else ""
        read = [f"Line {n}{more}: the settings of another program were read." for n in self._read]
        return [*read, *self._said] + [
            _WORDS[kind].format(mark) for kind, mark in self._found.items()
        ]


def is_workflow(value: Mapping[str, Any]) -> bool:
    """Is this what ComfyUI saves, or sends?"""
    nodes = [value, value.get("prompt")]
    if isinstance(value.get("nodes"), list) and "links" in value:
        return True
    return any(
        isinstance(each, Mapping) and "class_type" in each
        for node in nodes
        if isinstance(node, Mapping)
        for each in node.values()
    )


def line_fields(text: str) -> tuple[dict[str, Any], list[str]] | None:
    """A prompt line with options as our fields, and what of it has no effect; None for others."""
    if " --" not in f" {text}" or len(text) > _LONGEST:
        return None
    return _options(text) if text.startswith("--") else _short_options(text)


def _options(text: str) -> tuple[dict[str, Any], list[str]] | None:
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    found: dict[str, str] = {}
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word[2:]
            if option not in _OPTIONS or option in found:
                return None
            found[option] = ""
        elif found[option] and option not in ("prompt", "negative_prompt"):
            return None
        else:
            found[option] += f" {word}" if found[option] else word
    if not found.get("prompt"):
        return None
    count = _whole_of(found.pop("batch_size", "1")), _whole_of(found.pop("n_iter", "1"))
    if None in count:
        return None
    idle = [f"`--{name}` has no effect here." for name in found if not _OPTIONS[name]]
    said = {_OPTIONS[name]: value for name, value in found.items() if _OPTIONS[name]}
    fields = _fields(said)
    if fields is not None and (pictures := (count[0] or 1) * (count[1] or 1)) > 1:
        fields["count"] = pictures
    return None if fields is None else (fields, idle)


def _short_options(text: str) -> tuple[dict[str, Any], list[str]] | None:
    prompt, *options = re.split(r"(?<=\s)--(?=[a-z]+\s)", text)
    said = {"prompt": prompt.rstrip()}
    for option in options:
        name, _, value = option.partition(" ")
        if (field := _SHORT.get(name, "")) in ("", *said):
            return None
        said[field] = value.strip()
    fields = _fields(said)
    certain = "width" in said and "height" in said
    return (fields, []) if certain and fields is not None else None


def _fields(said: Mapping[str, str]) -> dict[str, Any] | None:
    """Texts of options as values of our fields; None where one is no number."""
    fields: dict[str, Any] = {}
    for name, text in said.items():
        if name in ("prompt", "negative_prompt"):
            fields[name] = text
        elif name == "cfg":
            if not re.fullmatch(r"\d{1,3}(\.\d{1,6})?", text, re.ASCII):
                return None
            fields["cfg_scale"] = float(text)
        elif name == "seed" and text == "-1":
            continue
        elif (number := _whole_of(text)) is None:
            return None
        elif name == "steps":
            fields["forwards"] = number
        else:
            fields[name] = number
    return fields


def _whole_of(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,20}", text, re.ASCII) else None


class Pasted:
    """Finds generation data among the lines of a list: a prompt, and below it its settings."""

    def __init__(self) -> None:
        self._held: list[tuple[int, str]] = []
        self._after = False

    def add(self, number: int, text: str) -> list[tuple[int, str | dict[str, Any]]]:
        """What is certain now that line ``number`` is known: prompts, or fields, with their line."""
        if not text:
            self._after = False
            return self.rest()
        if self._after and re.match(r"(Negative )?[Tt]emplate: ", text):
            return []
        self._after = False
        if self._held and text.startswith("Steps: "):
            fields = request_of_parameters("\n".join([*(t for _, t in self._held), text]))
            if fields is not None:
                first = self._held[0][0]
                self._held, self._after = [], True
                return [(first, fields)]
        self._held.append((number, text))
        return [self._held.pop(0)] if len(self._held) > _HELD else []

    def rest(self) -> list[tuple[int, str | dict[str, Any]]]:
        """The lines held back: they were prompts."""
        held: list[tuple[int, str | dict[str, Any]]] = [*self._held]
        self._held = []
        return held


def fitted(fields: dict[str, Any], limits: Limits) -> tuple[dict[str, Any], list[str]]:
    """What another program asks for, as the model counts and within its limits, and a warning
    for each change.

    ``forwards`` and ``cfg_scale`` in ``fields`` are the web UI's steps and CFG scale.
    """
    fields, warnings = dict(fields), []
    card = limits.card(fields)

    def put(name: str, value: Any, words: str) -> None:
        fields[name] = value
        warnings.append(words)

    width, height = fields.get("width"), fields.get("height")
    if width and height:
        near = card.fitted(width, height)
        if near != (width, height):
            fields["width"], fields["height"] = near
            warnings.append(f"{near[0]}x{near[1]} is used instead of {width}x{height}.")
    if forwards := fields.pop("forwards", None):
        fields["num_inference_steps"] = card.steps(forwards)
        if card.steps(forwards) > MAX_STEPS:
            most = card.forwards(MAX_STEPS)
            put("num_inference_steps", MAX_STEPS, f"{most} steps are used instead of {forwards}.")
    scale = fields.pop("cfg_scale", 0)
    if card.guidance(scale) > MAX_GUIDANCE:
        most_words = f"{MAX_GUIDANCE + card.unguided:g} is used instead of {scale:g}"
        put("guidance_scale", MAX_GUIDANCE, f"CFG scale: {most_words}.")
    elif card.guidance(scale):
        fields["guidance_scale"] = card.guidance(scale)
    seed = fields.get("seed", 0)
    if seed > MAX_SEED:
        ours = seed % (MAX_SEED + 1)
        put("seed", ours, f"Seed {seed} is larger than seeds can be here; {ours} is used.")
    return fields, warnings
