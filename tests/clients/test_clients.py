"""Other people's clients, unmodified, against the running service (`make clients`).

Of npm: openai and the AI SDK's OpenAI provider; of Python: openai, litellm, langchain-community's
DALL·E wrapper and webuiapi. What each is asked is in clients/ask.mjs and clients/ask.py.
"""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house_of_clients import House, house
from PIL import Image

CLIENTS = Path(__file__).parents[1] / "clients"

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("clients") / "root") as made:
        yield made


def ask(here: House, *command: str) -> list[dict[str, Any]]:
    """What each client got."""
    local = {"PYTHONPATH": str(CLIENTS / "python"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [*command, here.url], env=os.environ | local, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def is_picture(data: bytes) -> bool:
    return Image.open(io.BytesIO(data)).size == (256, 256)


def has_picture(seen: dict[str, Any]) -> bool:
    """Did the client get a picture, as bytes or by an address that gives it?"""
    if seen.get("b64_json"):
        return is_picture(base64.b64decode(seen["b64_json"]))
    with urllib.request.urlopen(seen["url"], timeout=30) as answer:
        return is_picture(answer.read())


def test_npm(here: House) -> None:
    seen = ask(here, "node", str(CLIENTS / "ask.mjs"))
    plain = {one["model"]: one for one in seen if one["client"] == "openai"}
    assert has_picture(plain["dall-e-3"]) and plain["dall-e-3"]["url"]
    assert has_picture(plain["gpt-image-1"]) and plain["gpt-image-1"]["b64_json"]
    told = [one for one in seen if one["client"] == "openai stream"]
    assert told[-1]["type"] == "image_generation.completed" and has_picture(told[-1])
    [refused] = [one for one in seen if one["client"] == "openai refused"]
    assert refused["name"] == "BadRequestError" and refused["param"] == "size"
    ai = [one for one in seen if one["client"] == "ai"]
    assert {one["model"] for one in ai} == {"gpt-image-1", "dall-e-3", "turbo"}
    for one in ai:
        assert len(one["pictures"]) == 2
        assert all(is_picture(base64.b64decode(picture)) for picture in one["pictures"])


def test_python(here: House) -> None:
    seen = ask(here, sys.executable, str(CLIENTS / "ask.py"))
    assert [one["client"] for one in seen] == [
        "openai", "litellm", "litellm", "litellm", "langchain", "webuiapi",
    ]  # fmt: skip
    assert all(has_picture(one) for one in seen[:-1])
    assert seen[-1]["size"] == [256, 256]
