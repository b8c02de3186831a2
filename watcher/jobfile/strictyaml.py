"""YAML as people type it, read to JSON types only, with the place of every key and value.

Stricter and kinder than ``yaml.safe_load``: ``no``, ``16:9``, dates and ``0123`` stay text;
only ``true false null ~``, an empty value and JSON's numbers are anything else. Anchors, aliases,
tags, merge keys, doubled keys, keys that are no text and deep nesting are refused, and so
is a `` #`` that would cut a text off.

Values are built from parser *events* with a stack of our own: libyaml's event parser does
not recurse, its loader does, and 25 KB of ``[`` kills the process there (SIGSEGV). So no
loader, composer or constructor of PyYAML is used. Nothing is expanded, so memory stays in
proportion to the text.

Knows nothing of jobs; the caller names the keys whose value is always text.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NoReturn

import yaml

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile.problems import refusal, shown, shown_key
from watcher.jobfile.strictjson import MAX_DEPTH, Number, line_of

MAX_EVENTS = 120_000  #: about 1,000 jobs with every field given, three times over

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,399})(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {"": None, "null": None, "~": None, "true": True, "false": False}
_CUT = re.compile(r"[ \t]+#")
_QUOTE = "Put the text in quotes, or write it under `prompt: |` on the next line, indented."

_BACKSLASH = 'A backslash inside "…" begins an escape, and this one is not known.'
_GOES_ON = "Something goes on after a quoted text, a list or a mapping has ended."

#: What the parser says, what it means to whoever typed the line, and what to do.
_PLAINLY = (
    (
        "mapping values",
        "A colon with a blank after it stands inside an unquoted text.",
        f"{_QUOTE} Or check that the line is not indented too far.",
    ),
    ("cannot start any token", "An unquoted text cannot begin with this character.", _QUOTE),
    ("alphabetic or numeric", "An unquoted text cannot begin with `*` or `&`.", _QUOTE),
    ("expected key", _GOES_ON, _QUOTE),
    ("<block end>", _GOES_ON, _QUOTE),
    *(
        (theirs, _BACKSLASH, r"Write \\ for a backslash, or put the text in '…'.")
        for theirs in ("escape", "hexdecimal", "hexadecimal")
    ),
    ("',' or", "A list or mapping in brackets is not closed, or lacks a comma.", _QUOTE),
    ("<document start>", "Something goes on after the end of the value.", _QUOTE),
    ("could not find expected ':'", "A `:` is missing after a key.", _QUOTE),
)

#: libyaml where it is there (every usual wheel), else the same parser in Python.
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = Sequence[str | int]


@dataclass(frozen=True)
class YamlDocument:
    """One YAML document: its ``value`` in JSON types, and where everything in it stands.

    ``line`` is the line the document begins on, from 1.
    """

    value: Any
    line: int
    _places: dict[int, dict[str | int, tuple[int, int]]] = field(repr=False)

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of the key or item at ``path``; of its nearest parent otherwise."""
        here, at = self.value, (self.line, 1)
        for step in path:
            known = self._places.get(id(here), {})
            if step not in known:
                break
            at, here = known[step], here[step]
        return at


@dataclass
class _Open:
    """A mapping or list that is being filled."""

    value: Any
    places: dict[str | int, tuple[int, int]]
    items_are_text: bool
    key: str | None = None


class _Builder:
    """Turns one stream of events into documents."""

    def __init__(
        self,
        text: str,
        text_keys: Collection[str],
        comment_keys: Collection[str],
        lists: Collection[str],
    ) -> None:
        self._text = text
        self._text_keys = text_keys
        self._comment_keys = comment_keys
        self._lists = lists
        self._stack: list[_Open] = []
        self._root: Any = None
        self._places: dict[int, dict[str | int, tuple[int, int]]] = {}
        self._last_key: tuple[str | None, int] = (None, 0)
        self.documents: list[YamlDocument] = []

    def refuse(self, code: str, message: str, mark: Any, remedy: str = "") -> NoReturn:
        """Raises; ``mark`` is libyaml's, which counts from 0. Shows the line and its key."""
        line = min(mark.line, self._text.rstrip().count("\n")) + 1  # the end is on the last line
        source = self._text.split("\n", line)[line - 1 : line]
        key, key_line = self._last_key
        problem = ValueFault(
            code,
            message,
            key=key if key_line == line else None,
            line=line,
            column=mark.column + 1,
            document=len(self.documents) + 1 if self.documents else None,
            value=shown(source[0].strip()[:70]) if source else None,
            remedy=remedy or None,
        )
        raise refusal([problem])

    def unreadable(self, error: Any) -> NoReturn:
        """The parser's complaint in plain words, with the advice that mends the usual causes."""
        mark = error.problem_mark or error.context_mark
        said = error.problem or ""
        source = self._text.split("\n", mark.line + 1)[mark.line : mark.line + 1] or [""]
        indent = source[0][: len(source[0]) - len(source[0].lstrip())]
        if "quoted scalar" in (error.context or "") and "unexpected" in said:
            remedy = "Close the quote; inside '…' write '' for one '."
            self.refuse(
                "bad_yaml", "A quote is opened and never closed.", error.context_mark, remedy
            )
        if "\t" in indent:
            self.refuse("bad_yaml", "The line is indented with a tab.", mark, "Indent with spaces.")
        for theirs, ours, remedy in _PLAINLY:
            if theirs in said:
                self.refuse("bad_yaml", ours, mark, remedy)
        self.refuse(
            "bad_yaml", f"{said[:1].upper()}{said[1:] or 'This cannot be read'}.", mark, _QUOTE
        )

    def take(self, event: Any) -> None:
        """The next event. Raises SteadyError for what is not read."""
        start: Any = event.start_mark
        if isinstance(event, yaml.ScalarEvent):
            self._plain(event)
            self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._plain(event)
            above = self._stack[-1] if self._stack else None
            self._begin([], event, above is None or above.key in self._lists)
        elif isinstance(event, yaml.MappingStartEvent):
            self._plain(event)
            self._begin({}, event, False)
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            done = self._stack.pop()
            self._places[id(done.value)] = done.places
        elif isinstance(event, yaml.AliasEvent):
            self.refuse("unsafe_yaml", "Aliases (`*name`) are not read.", start, _QUOTE)
        elif isinstance(event, yaml.DocumentStartEvent):
            if event.tags:
                self.refuse("unsafe_yaml", "Tags (`%TAG`) are not read.", start)
            self._root, self._places = None, {}
            self._line = start.line + 1
        elif isinstance(event, yaml.DocumentEndEvent):
            self.documents.append(YamlDocument(self._root, self._line, self._places))

    def _plain(self, event: Any) -> None:
        if event.anchor is not None:
            self.refuse("unsafe_yaml", "Anchors (`&name`) are not read.", event.start_mark, _QUOTE)
        if event.tag is not None:
            self.refuse("unsafe_yaml", "Tags (`!name`) are not read.", event.start_mark, _QUOTE)

    def _begin(self, value: Any, event: Any, items_are_text: bool) -> None:
        if len(self._stack) >= MAX_DEPTH:
            self.refuse("unsafe_yaml", f"Nested deeper than {MAX_DEPTH} levels.", event.start_mark)
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            self.refuse(
                "bad_yaml",
                "A key must be plain text, not a list or mapping.",
                event.start_mark,
                _QUOTE,
            )
        self._add(value, event)
        self._stack.append(_Open(value, {}, items_are_text))

    def _scalar(self, event: Any) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(top, event)
            return
        bare = event.implicit[0]
        value: Any = event.value
        if bare:
            always_text = top is not None and (
                top.items_are_text if isinstance(top.value, list) else top.key in self._text_keys
            )
            value = read_scalar(event.value, always_text)
            if value is None or isinstance(value, str):
                self._refuse_cut(top, event, value)
        self._add(value, event)

    def _key(self, top: _Open, event: Any) -> None:
        key = event.value
        self._last_key = shown_key(key), event.start_mark.line + 1
        if event.implicit[0] and key == "<<":
            self.refuse("unsafe_yaml", "Merge keys (`<<`) are not read.", event.start_mark)
        if key in top.value:
            first = top.places[key][0]
            message = f"`{shown_key(key)}` is written twice; first on line {first}."
            self.refuse("duplicate_key", message, event.start_mark)
        top.key = key
        top.places[key] = (event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse_cut(self, top: _Open | None, event: Any, value: str | None) -> None:
        """A comment after free text is far more often a lost half of the text."""
        key = top.key if top is not None else None
        if key is not None and key in self._comment_keys:
            return
        if value is None and (event.value or key not in self._text_keys):
            return
        end = event.end_mark.index
        if _CUT.match(self._text, end):
            self.refuse(
                "prompt_cut_at_hash",
                "A ` #` starts a YAML comment and would cut the text off.",
                event.start_mark,
                "Put the whole text in quotes.",
            )

    def _add(self, value: Any, event: Any) -> None:
        if not self._stack:
            self._root = value
            return
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.places[len(top.value)] = (event.start_mark.line + 1, event.start_mark.column + 1)
            top.value.append(value)
        else:
            top.value[top.key] = value
            top.key = None


def read_scalar(text: str, always_text: bool = False) -> Any:
    """What an unquoted scalar is: None, bool, int, float or str; text or None under ``always_text``.

    A number too large for a float stays text.
    """
    if always_text:
        return None if text in ("", "null", "~") else text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if (number := _NUMBER.fullmatch(text)) is None:
        return text
    if number[1] is None and number[2] is None:
        return int(text)
    value = Number(text)
    return value if isfinite(value) else text


def read_yaml(
    text: str,
    *,
    text_keys: Collection[str] = (),
    comment_keys: Collection[str] = (),
    text_lists: Collection[str] = (),
) -> list[YamlDocument]:
    """The documents of ``text`` (decoded, without a byte order mark).

    ``text_keys``: keys whose unquoted value is always text (``prompt: 12:30``, ``prompt: 1e3``).
    ``text_lists``: keys of lists whose unquoted items are always text; the outermost list is one.
    ``comment_keys``: keys whose value cannot hold a ``#``, so that a comment may follow it.
    An empty ``text`` gives no document, or one whose value is None.

    Raises SteadyError bad_yaml, unsafe_yaml, duplicate_key, prompt_cut_at_hash or too_large,
    each with one problem that names line and column.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    builder = _Builder(text, text_keys, comment_keys, text_lists)
    try:
        for number, event in enumerate(yaml.parse(text, Loader=_PARSER)):
            if number > MAX_EVENTS:
                builder.refuse("too_large", "The file holds too many values.", event.start_mark)
            builder.take(event)
    except yaml.reader.ReaderError as error:
        raise _unprintable(text, error) from None
    except yaml.MarkedYAMLError as error:
        try:
            builder.unreadable(error)
        except SteadyError as refusal:
            raise refusal from None
    return builder.documents


def _unprintable(text: str, error: Any) -> SteadyError:
    """A character YAML does not allow. The reader counts differently in C and Python, so we look."""
    odd = re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]", text
    )
    position = odd.start() if odd else 0
    line, column = line_of(text, position)
    what = f"U+{ord(odd[0]):04X}" if odd else "that YAML does not allow"
    message = f"Line {line} holds the control character {what}."
    remedy = "Remove it; if the text looked right, save the file as UTF-8."
    return ValueFault("bad_yaml", message, line=line, column=column, remedy=remedy).error()
