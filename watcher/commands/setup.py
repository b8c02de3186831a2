"""init: a root to work in, with every setting written out in a commented config.yaml.

A crash leaves what was made so far; the next call makes the rest.
"""

import textwrap
from pathlib import Path
from typing import Any

from watcher.commands.desk import Desk, command
from watcher.errors import SteadyError

#: The first key of each group of settings, and the group's heading in config.yaml.
HEADINGS = {
    "inbox": "where things are (relative paths are below this folder)",
    "host": "the HTTP door",
    "settle_seconds": "the inbox",
    "engine": "the model",
    "default_width": "what a job gets when it says nothing, and may ask for",
    "image_format": "the pictures",
    "cooldown": "the queue",
}


@command()
def init(desk: Desk) -> None:
    """Make a root: config.yaml, inbox/ and outputs/. What exists is left as it is."""
    file = desk.root / "config.yaml"
    try:
        desk.root.mkdir(parents=True, exist_ok=True)
        made = _create(file, config_text())
        config = desk.config
        for folder in (config.inbox, config.outputs):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        words = f"{error.filename} cannot be made: {error.strerror}."
        raise SteadyError("folder_gone", words) from None
    desk.answer(
        {"root": str(desk.root), "config": str(file), "created": made},
        f"{'Made' if made else 'Kept'} {file}\n"
        f"Start the service:  steady --root {desk.root} serve\n"
        f"Drop a job file:    {config.inbox}",
    )


def _create(file: Path, text: str) -> bool:
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        return False
    return True


def config_text() -> str:
    """config.yaml as it is shipped: every key with its default and meaning, all commented out."""
    from watcher.config import Config

    lines = [
        "# The settings of one root. All of them have defaults: nothing needs to be set.",
        "# Remove the `# ` before a line to change it. The environment wins over this file:",
        "# STEADY_PORT=8080 sets `port`. `steady doctor` says whether all is well.",
    ]
    for name, field in Config.settings().items():
        if name in HEADINGS:
            lines += ["", f"# -- {HEADINGS[name]}"]
        left = f"# {name}: {_yaml(field.get_default(call_default_factory=True))}"
        words = textwrap.wrap(field.description or "", 64)
        lines.append(f"{left:<34}  # {words[0]}")
        lines += [f"#{'':<33}  # {more}" for more in words[1:]]
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return "{}" if isinstance(value, dict) else "[]"
    return str(value)
