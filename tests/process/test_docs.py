"""What is written for people is true: links lead somewhere, and every fence is tried.

A fence says by its words what is done with it: ``yaml`` is planned by the real planner,
``yaml config`` is loaded as settings, ``json`` is read, ``sh`` is run (here, or by
test_api_docs.py and test_clients_docs.py against a service), ``sh check`` and commands within
a line are held against the programs' own words, without running.
"""

import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from roots import Root

from watcher.cli import app
from watcher.config import Config
from watcher.errors import ERRORS
from watcher.jobfile import parse
from watcher.jobfile.planner import Planner
from watcher.limits import Card, Limits
from watcher.models.catalogue import starter_folder
from watcher.models.tokens import unknown_words

HOUSE = Path(__file__).parents[2]
PAGES = sorted(
    page
    for where in ("*.md", "docs/*.md", "starter/README.md", ".github/**/*.md")
    for page in HOUSE.glob(where)
)
#: Run here, each in a root of its own; the others by the tests of their pages.
RUN = {"quickstart.md", "operations.md"}
ELSEWHERE = {"api.md", "clients.md"}
#: Programs that are not ours: what they are told is believed.
FOREIGN = {"apt-get", "cd", "chmod", "cp", "docker", "git", "install", "systemctl",
           "umask", "useradd", "usermod", "ray", "."}  # fmt: skip

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fences(page: Path, *words: str) -> list[str]:
    """The contents of the fences whose first line says exactly one of ``words``."""
    found = re.findall(r"^```(.*?)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for said, text in found if said in words]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@functools.cache
def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as they are made on the web."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@named
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", prose(page))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[.+\]: (\S+)", text, re.M)
    lost = []
    for link in links:
        place, _, anchor = link.partition("#")
        if place.startswith("https://"):
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []
    for name in re.findall(r"\]\[(\w+)\]|\[(\w+)\](?= \|)", text):
        assert f"[{name[0] or name[1]}]: " in text


@named
def test_every_fence_is_of_a_kind_that_is_tried(page: Path) -> None:
    said = re.findall(r"^```(.*)\n(?:.*\n)*?```$", page.read_text(encoding="utf-8"), re.MULTILINE)
    known = {"", "yaml", "yaml config", "json", "sh check"}
    if page.name in ELSEWHERE:
        known |= {"sh", "python"}
    if page.name in RUN:
        known |= {"sh"}
    assert set(said) <= known


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    pages = [page for page in PAGES if page.parent.name == "docs"]
    told = set(re.findall(r"docs/([\w-]+\.md)", readme))
    for page in pages:
        if page.name in told:
            told |= set(re.findall(r"\]\(([\w-]+\.md)", page.read_text(encoding="utf-8")))
    assert [page.name for page in pages if page.name not in told] == []


@named
def test_every_job_file_is_planned(page: Path) -> None:
    for text in fences(page, "yaml"):
        parsed = parse(text.encode(), ".yaml", Planner(Limits(usual=Card(accepts=None))))
        assert parsed.requests and not parsed.refused and not parsed.warnings, text


@named
def test_every_setting_shown_is_one(page: Path) -> None:
    for text in fences(page, "yaml config"):
        Config(**yaml.safe_load(text))


@named
def test_every_json_shown_is_some(page: Path) -> None:
    for text in fences(page, "json"):
        json.loads(text)


def test_every_word_of_the_operations_is_one_of_ours() -> None:
    words = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", prose(HOUSE / "docs" / "operations.md")))
    assert len(words) > 10
    assert words - set(ERRORS) - Config.settings().keys() == set()


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/clients.md", "docs/api.md",
                                  "docs/shop.md", "docs/job-files.md", "docs/openapi.json", "examples"])  # fmt: skip
def test_every_prompt_shown_says_words_that_the_starter_knows(name: str) -> None:
    """What is tried from a fresh clone is drawn by the starter: a picture worth showing."""
    place = HOUSE / name
    files = [each for each in place.iterdir() if each.is_file()] if place.is_dir() else [place]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    found = re.findall(r"""(?:steady submit|prompt"?\s*[:=])\s*\\?"([^"{\\]{3,})""", text)
    assert found or name in ("docs/shop.md", "docs/job-files.md")
    strange = {said for prompt in found if (said := unknown_words(starter_folder(), prompt))}
    assert not strange


# -- commands that are not run


def commands(page: Path) -> list[str]:
    lines = [line for text in fences(page, "sh check") for line in text.splitlines()]
    inline = re.findall(r"`((?:steady|make|python -m) [^`]+)`", prose(page).replace("\n", " "))
    return [line for line in lines if line.strip()] + inline


@named
def test_every_command_shown_exists(page: Path) -> None:
    for line in commands(page):
        for part in re.split(r" \| | && |; ", line):
            check(shlex.split(part, comments=True))


def check(words: list[str]) -> None:
    if words[:2] == ["sudo", "-u"]:
        words = words[3:]
    elif words[:1] == ["sudo"]:
        words = words[1:]
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if not words:
        return
    program, arguments = os.path.basename(words[0]), words[1:]
    if program == "steady":
        steady(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (HOUSE / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), words
    elif re.fullmatch(r"python3?", program):
        python(arguments)
    elif program in ("pytest", "pip", "ruff", "run"):
        assert program != "pytest" or test_exists(arguments), words
    elif program == "curl":
        [address] = [word for word in arguments if "://" in word]
        path = re.sub(r"^http://[^/]+", "", address)
        assert path in json.loads((HOUSE / "docs" / "openapi.json").read_text())["paths"], words
    else:
        assert program in FOREIGN, words


def python(arguments: list[str]) -> None:
    if arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]), arguments
        assert arguments[1] != "pytest" or test_exists(arguments[2:]), arguments
    elif arguments[:1] != ["-c"]:
        assert (HOUSE / arguments[0]).is_file(), arguments


def test_exists(arguments: list[str]) -> bool:
    """Does what pytest is told to run exist?"""
    for word in arguments:
        file, _, name = word.partition("::")
        if file.startswith("tests/"):
            assert (HOUSE / file).exists(), word
            assert not name or f"def {name}(" in (HOUSE / file).read_text(), word
    return True


test_exists.__test__ = False  # type: ignore[attr-defined]


@functools.cache
def known() -> Any:
    return typer.main.get_command(app)


def steady(arguments: list[str]) -> None:
    """Would `steady` take these words? Read by its own parser, without running."""
    command, context = known(), None
    while True:
        try:
            context = command.make_context(command.name, list(arguments), parent=context)
        except Exception as error:
            if type(error).__name__ in ("Exit", "MissingParameter"):  # --help; named, not shown
                return
            raise AssertionError(f"steady {' '.join(arguments)}: {error!r}") from error
        if not hasattr(command, "commands"):
            return
        name, *arguments = [*context._protected_args, *context.args]
        command = command.get_command(context, name)
        assert command is not None, name


# -- commands that are run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(RUN))
def test_the_lines_of_the_page_do_what_it_says(
    name: str, make_root: Callable[..., Root], tmp_path: Path
) -> None:
    root = make_root()
    home = root.folder
    if name == "quickstart.md":  # begins with nothing; the settings come by the environment
        home = tmp_path / "home"
        home.mkdir()
        keys = json.loads((root.folder / "config.yaml").read_text())
        root.extra = {
            f"STEADY_{key.upper()}": json.dumps(value) if isinstance(value, dict) else str(value)
            for key, value in keys.items()
        }
    else:
        root.drop("a.yaml", "prompt: before\n")
        root.finish()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "steady").write_text(f'#!/bin/sh\nexec {sys.executable} -m watcher.cli "$@"\n')
    (tools / "steady").chmod(0o755)
    script = "\n".join(fences(HOUSE / "docs" / name, "sh"))
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=home, env=root.environment() | {"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if name == "quickstart.md":
        assert len(list((home / "studio" / "outputs").glob("*/*.png"))) == 6
        assert "butterfly" in done.stdout
    else:
        assert root.states() == ["completed"]
        assert list((home / "pictures-copy").glob("*/*.png"))
