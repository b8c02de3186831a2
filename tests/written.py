"""The files that are made from the code. `make written` writes them anew; test_house.py holds
them to it."""

import json
import tempfile
from pathlib import Path
from typing import Any

from doors import Bench
from fastapi import FastAPI

from api.docs import spec
from watcher.commands.setup import config_text
from watcher.errors import ERRORS
from watcher.limits import Limits

HOUSE = Path(__file__).parent.parent

_EXITS = {
    1: ("About one job", "It has no picture, or its state forbids this; `steady` ends with 1."),
    2: ("The file or the request is wrong", "Nothing was queued; the command ends with 2."),
    3: ("There is no such thing", "The command ends with 3."),
    4: ("The service is not ready", "No job pays for it; the command ends with 4."),
    5: ("The wait is over", "`--timeout` passed; the command ends with 5."),
}


def described(app: FastAPI) -> dict[str, Any]:
    """The API's document under Z-Image-Turbo's limits, whatever this machine would choose."""
    document = spec.openapi(app, Limits())
    document["info"]["version"] = "0"
    return document


def openapi_text() -> str:
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder)) as bench:
        document = described(bench.app)
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def errors_text() -> str:
    """docs/errors.md: the registry, sorted by what a person has to do about it."""
    lines = [
        "# Every error, and what to do",
        "",
        "<!-- Made from watcher/errors.py by `make written`. -->",
        "The same code means the same at every door: in `.error.json` beside a refused file, in the",
        "command's words and exit code, in HTTP's problem documents, on the page and in a job's",
        "record. `class` is what the queue does about a job that ended so: `environment` costs no",
        "job (the queue waits and goes on by itself), `transient` is tried three times, five in a",
        "row of one class pause the queue, and only a person's retry runs the others again.",
    ]
    for number, (heading, words) in _EXITS.items():
        lines += ["", f"## {heading}", "", words, ""]
        lines += ["| code | what happened | what to do | HTTP | class |", "|---|---|---|---|---|"]
        lines += [
            f"| `{code}` | {kind.what} | {kind.do} | {kind.status} | {kind.klass} |".replace(
                ": |`", ": \\|`"
            )
            for code, kind in ERRORS.items()
            if kind.exit == number
        ]
    return "\n".join(lines) + "\n"


WRITTEN = {
    "config.yaml": config_text,
    "docs/errors.md": errors_text,
    "docs/openapi.json": openapi_text,
}

if __name__ == "__main__":
    for name, text_of in WRITTEN.items():
        (HOUSE / name).write_text(text_of(), encoding="utf-8")
