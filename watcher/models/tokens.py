"""What of a prompt a model reads: how many tokens, without torch, and of a small model which words.

The tokenizer is read once in a process, and only when a prompt comes that is long enough to
matter. Where it cannot be read nothing is said: the worker counts again. Keeps nothing on disk.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from watcher.models.catalogue import PROFILE

MAX_TOKENS = 512  #: of a prompt with what its template puts around it; the rest is cut off
#: No prompt of so few bytes is cut: a token is at least one, and a template is short.
_SURE = 400
_SHOWN = 60  #: characters of what is not read
_NAMED = 5  #: words that a model does not know are named
_WORD = re.compile(r"[^\W\d_]{3,}")  #: shorter ones are articles and the like
_HERE = "\ue000"  #: stands for the prompt: no letter, so a template leaves it as it is


def cut_of(folder: Path | None, prompt: str) -> str | None:
    """A warning that tells from which words on ``prompt`` is not read; None when all of it is.

    ``folder``: where the model lies, if it is here.
    """
    if folder is None or len(prompt) < _SURE // 4 or len(prompt.encode()) < _SURE:
        return None
    try:
        tokenizer, template = _tokenizer(folder)
    except Exception:  # a template or a tokenizer may fail in any way, and then nothing is known
        return None
    return cut_by(lambda text: tokenizer.encode(text).offsets, template, prompt)


def unknown_words(folder: Path | None, prompt: str) -> str | None:
    """A warning that names the words of ``prompt`` a model of a small vocabulary does not know.

    None where all are known, and for a model whose profile lists no ``words``: it knows them all.
    """
    known = _words(folder) if folder else None
    if not known:
        return None
    asked = dict.fromkeys(word.lower() for word in _WORD.findall(prompt))
    strange = [word[:30] for word in asked if word not in known]
    if not strange:
        return None
    more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
    named = ", ".join(f"`{word}`" for word in strange[:_NAMED])
    return (
        f"This small model does not know {named}{more}, so expect something else. It draws plain"
        " shapes, houses, trees, boats, cats and some twenty other things, and landscapes."
    )


@functools.lru_cache(maxsize=8)
def _words(folder: Path) -> frozenset[str]:
    try:
        return frozenset(json.loads((folder / PROFILE).read_bytes()).get("words", "").split())
    except (OSError, ValueError, AttributeError):  # a damaged profile is told of elsewhere
        return frozenset()


def cut_by(
    places: Callable[[str], Sequence[tuple[int, int]]],
    template: Callable[[str], str],
    prompt: str,
    most: int = MAX_TOKENS,
) -> str | None:
    """The same with a tokenizer at hand.

    ``places``: where each token of a text begins and ends. ``template``: what makes a prompt the
    text that is encoded. ``most``: tokens that are read.
    """
    before, _, after = template(_HERE).partition(_HERE)
    whole = template(prompt)
    tokens = places(whole)
    if len(tokens) <= most:
        return None
    read = whole[len(before) : len(whole) - len(after)]
    shown = prompt if len(prompt) == len(read) else read
    place = _word_at(shown, tokens[most][0] - len(before))
    rest = shown[place:].lstrip()
    if not rest:  # of what the template adds, but nothing a person wrote
        return None
    place = len(shown) - len(rest)
    words = rest if len(rest) <= _SHOWN else rest[:_SHOWN].rsplit(None, 1)[0] + " …"
    return (
        f"The prompt is longer than this model reads: {most} tokens of {len(tokens)}."
        f' Not read, from character {place + 1} on: "{" ".join(words.split())}"'
    )


def _word_at(text: str, place: int) -> int:
    """Where the word begins that ``place`` is in; a word read in part counts as not read."""
    place = max(0, place)
    while 0 < place < len(text) and not text[place].isspace() and not text[place - 1].isspace():
        place -= 1
    return place


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> tuple[Any, Any]:
    """The tokenizer, and what makes a prompt the text it reads, as the pipeline does it.

    Several are kept: a file of jobs may go to and fro between models.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    home = folder / "tokenizer"
    own = home / "chat_template.jinja"
    if own.is_file():
        source = own.read_text(encoding="utf-8")
    else:
        settings = json.loads((home / "tokenizer_config.json").read_text(encoding="utf-8"))
        source = settings["chat_template"]
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)

    def template(prompt: str) -> str:
        return made.render(
            messages=[{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            enable_thinking=True,
        )

    template(_HERE)
    return Tokenizer.from_file(str(home / "tokenizer.json")), template
