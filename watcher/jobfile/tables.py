"""Rows of .csv, .tsv, .jsonl and .txt, one at a time and in constant memory.

A table is read as spreadsheets write it: ``,`` ``;`` tab or ``|``, a byte order mark, quoted
line breaks, ``sep=;`` on top, column names in any case. Rows are numbered from 1 after the
header (a spreadsheet's row n+1), blank rows counted.
Knows the names of the fields a column may fill, nothing else of jobs.
"""

import codecs
import collections
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile import strictjson
from watcher.jobfile.foreign import Pasted
from watcher.jobfile.hints import KNOWN, plain_key
from watcher.suffixes import FORMS

MAX_LINE = 1 << 20  #: characters of one physical line
csv.field_size_limit(MAX_LINE)  # a long cell is too long for its field, and no torn quote
_PIECE = 1 << 16  #: characters of a table written at once

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_LOOKS_LATIN = "it looks like Windows-1252 or Latin-1"
#: How files begin that are no text, what they are, and what their owner can do.
_NO_TEXT = (
    (b"pk\x03\x04", "a workbook or a .zip", "Save a table as .csv; call a bundle .zip."),
    (b"\xd0\xcf\x11\xe0", "a workbook or document", "Save it as .csv or as plain text."),
    (b"{\\rtf", "a document of a word processor", "Save it as plain text."),
    (b"%pdf-", "a PDF", "Save its text as .txt."),
    (b"\x1f\x8b", "packed with gzip", "Unpack it."),
    (b"\x89png", "a picture", "Call it by its own suffix."),
    (b"\xff\xd8\xff", "a picture", "Call it by its own suffix."),
    (b"<!doctype html", "a web page", "Save the text alone."),
    (b"<html", "a web page", "Save the text alone."),
)
_HEAD = 16  #: bytes that tell


def encoding_of(head: bytes) -> str:
    """The encoding a byte order mark announces; UTF-8 without one."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), "utf-8")


def _refuse_no_text(head: bytes) -> None:
    for begins, what, remedy in _NO_TEXT:
        if head.lower().startswith(begins):
            raise SteadyError("encoding", f"The file is {what}, not text.", remedy=remedy)


def decoded(data: bytes) -> str:
    """The text of a whole file, without its byte order mark. Raises SteadyError encoding."""
    _refuse_no_text(data[:_HEAD])
    try:
        return data.decode(encoding_of(data[:4]))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        wide = data[:400].count(0) > len(data[:400]) // 4
        guess = "it looks like UTF-16 without a byte order mark" if wide else _LOOKS_LATIN
        raise _not_text(error, f"Byte {error.start} (line {line})", line, guess) from None


def _not_text(error: UnicodeDecodeError, where: str, line: int, guess: str) -> SteadyError:
    """What is wrong with the bytes, where, and what they probably are."""
    message = f"{where} is not {error.encoding.upper()}; {guess}."
    remedy = "Save it as UTF-8 (in Excel: `CSV UTF-8`) and drop it again."
    return ValueFault("encoding", message, line=line, remedy=remedy).error()


@dataclass(slots=True)
class Row:
    """One row that is refused: what it held, by column, and why."""

    number: int
    line: int
    cells: Mapping[str, str]
    problems: tuple[ValueFault, ...]


@dataclass(slots=True)
class RawRow:
    """One row as read: ``cells`` of a table, or a JSON ``value`` (its text if there is a ``problem``).

    ``line`` is the physical line it begins on.
    """

    number: int
    line: int
    cells: list[str] = field(default_factory=list)
    value: Any = None
    problem: ValueFault | None = None


class _Text(io.TextIOWrapper):
    """Text over a stream that stays open when this goes away."""

    def close(self) -> None:
        """Leaves closing to whoever opened the stream."""


_FENCE = re.compile(r"```[\w-]*\s*")  #: a chat puts these around a file


class TextLines:
    """Physical lines of a binary stream as text, each bounded, with the encoding found out.

    The stream is left open; it must be seekable and stand at its beginning.
    """

    def __init__(self, stream: BinaryIO) -> None:
        start = stream.tell()
        head = stream.read(_HEAD)
        stream.seek(start)
        _refuse_no_text(head)
        self._text = _Text(stream, encoding=encoding_of(head), newline="")
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        readline = self._text.readline
        try:
            fenced = False
            while line := readline(MAX_LINE):
                self.number += 1
                if (self.number == 1 or fenced) and _FENCE.fullmatch(line):
                    if fenced:
                        return
                    fenced = True
                    continue
                if len(line) >= MAX_LINE:
                    message = f"Line {self.number} is longer than {MAX_LINE} characters."
                    raise ValueFault("too_large", message, line=self.number).error()
                yield line
        except UnicodeDecodeError as error:
            # what was decoded before this block ended inside the line that comes next
            torn = self.number + 1 + error.object.count(b"\n", 0, error.start)
            raise _not_text(error, f"Line {torn}", torn, _LOOKS_LATIN) from None


class _OneLine:
    """Gives a csv.reader one line at a time, since to make a reader takes longer than to read one."""

    def __init__(self) -> None:
        self.line: str | None = None

    def __iter__(self) -> "_OneLine":
        return self

    def __next__(self) -> str:
        line, self.line = self.line, None
        if line is None:
            raise StopIteration
        return line


def delimiter_of(line: str, form: str) -> str:
    """The separator of a header line; for one column a character that no text holds."""
    counts = {mark: _outside_quotes(line, mark) for mark in ("\t", ";", ",")}
    best = max(counts, key=lambda mark: counts[mark])
    if form == ".tsv" and counts["\t"]:
        best = "\t"
    if not counts[best] and _outside_quotes(line, "|"):
        return "|"
    return best if counts[best] else "\x1f"


def _outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


class Table:
    """A .csv or .tsv: ``header`` as written and, from :meth:`rows`, what stands below it.

    A cell in quotes is read as spreadsheets write it; a quote that does not fit that ends no
    cell and joins no lines. Between tabs it is text, since that is how cells are copied there;
    elsewhere the row is refused. A table with an ``error`` column is one of ours that comes back:
    the apostrophes we put before formulas are taken off.

    ``warnings``: what was left out. Raises SteadyError empty_file, encoding, too_large.
    """

    def __init__(self, stream: BinaryIO, form: str) -> None:
        self._lines = TextLines(stream)
        self._source = iter(self._lines)
        self._ahead: collections.deque[tuple[int, str]] = collections.deque()
        self.warnings: list[str] = []
        number, first = self._top()
        if first.startswith("#TYPE "):
            self.warnings.append("The first line, `#TYPE …`, was left out.")
            number, first = self._top()
        separator = first[4:5] if re.fullmatch('(?i:sep=[^"])', first.rstrip("\r\n")) else ""
        if separator:
            number, first = self._top()
        self._mark = separator or delimiter_of(first, form)
        self._one = _OneLine()
        self._csv = csv.reader(self._one, delimiter=self._mark, strict=True)
        self._guarded = False
        header, problem = self._cells(number, first)
        if problem is not None:
            raise SteadyError("bad_csv", problems=[problem], remedy=problem.remedy or "")
        self.header = [name.strip() for name in header]
        self._guarded = "error" in map(str.lower, self.header)

    def _top(self) -> tuple[int, str]:
        """The next line that says something."""
        while (numbered := self._next()) is not None:
            if numbered[1].strip("\r\n\t ,;"):
                return numbered
        raise SteadyError("empty_file", "The table is empty.")

    def _next(self) -> tuple[int, str] | None:
        if self._ahead:
            return self._ahead.popleft()
        line = next(self._source, None)
        return None if line is None else (self._lines.number, line)

    def rows(self) -> Iterator[RawRow]:
        """All rows that are not blank, with a problem where the quotes of one do not fit."""
        number = 0
        while (numbered := self._next()) is not None:
            line, text = numbered
            number += 1
            cells, problem = self._cells(line, text)
            if "".join(cells).strip():
                yield RawRow(number, line, cells, problem=problem)

    def _cells(self, number: int, line: str) -> tuple[list[str], ValueFault | None]:
        """The cells of the row that begins with ``line``, which is number ``number``."""
        problem = None
        cells = line.rstrip("\r\n").split(self._mark)
        if '"' in line:
            quoted = self._quoted(number, line)
            if quoted is not None:
                cells = quoted
            elif self._mark == "\t":
                whole = map(_WHOLE_CELL.fullmatch, cells)
                cells = [
                    match[1].replace('""', '"') if match else cell
                    for cell, match in zip(cells, whole, strict=True)
                ]
            else:
                message = "A quote stands where none can, or is never closed."
                problem = ValueFault("bad_csv", message, line=number, remedy=_CLOSE)
        if self._guarded:
            cells = [c[1:] if c.startswith("'") and _FORMULA.match(c) else c for c in cells]
        return cells, problem

    def _quoted(self, number: int, line: str) -> list[str] | None:
        """The cells where all quotes fit; None, and no further line taken, where they do not."""
        self._one.line = line
        try:
            return next(self._csv)
        except csv.Error:
            pass  # one of them may be closed on a later line
        taken: list[tuple[int, str]] = []

        def lines() -> Iterator[str]:
            yield line
            room = MAX_CELL
            while room > 0 and (numbered := self._next()) is not None:
                taken.append(numbered)
                room -= len(numbered[1])
                yield numbered[1]

        with contextlib.suppress(csv.Error, StopIteration):
            cells = next(csv.reader(lines(), delimiter=self._mark, strict=True))
            # with a tab and a line break in one cell: rows, joined by a quote somebody forgot
            glued = any("\t" in cell and "\n" in cell for cell in cells)
            if not (taken and self._mark == "\t" and glued):
                return cells
        self._ahead.extendleft(reversed(taken))
        return None


def written(stream: BinaryIO, suffix: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a .csv or .tsv, and each row's number with its cells, as they stand there."""
    table = Table(stream, FORMS[suffix])
    return table.header, ((row.number, row.cells) for row in table.rows())


MAX_CELL = 1 << 16  #: characters of the further lines of a row
_CLOSE = 'Inside a quoted cell write "" for one ", and close the quote.'
_WHOLE_CELL = re.compile(r'"((?:[^"]|"")*)"')


def json_rows(stream: BinaryIO) -> Iterator[RawRow]:
    """The lines of a .jsonl that are not blank, each with its value or its problem."""
    lines = TextLines(stream)
    for text in lines:
        if text.isspace():
            continue
        row = RawRow(lines.number, lines.number)
        try:
            row.value = strictjson.read_json(text)
        except SteadyError as error:
            row.value = text.strip()
            begins = row.value == "{" or row.value.startswith("[")
            if begins and error.code == "bad_json":
                message = "A job or list goes over several lines; in a .jsonl each has its own."
                raise SteadyError("bad_shape", message, remedy="Call the file .json.") from None
            problem = error.problems[0]
            message = problem.message.removeprefix("Line 1, ")
            message = message[:1].upper() + message[1:]
            row.problem = replace(problem, message=message, line=lines.number)
        yield row


_JSON = re.compile(r'\s*(\{\s*("|\}|$)|\[\s*(["{\[\]]|$))')


def begins_as_json(text: str) -> bool:
    """Does a text begin with a mapping or list of JSON? No prompt does."""
    return _JSON.match(text) is not None


_YAML = re.compile(r"\s*(- +)?prompt *:(\s|$)", re.IGNORECASE)
_MARKS = re.compile("[,;\t|]")
#: What a text that was called by another suffix should be called.
CALL_IT = {
    ".json": "Call the file .json (or .jsonl, with a job in every line).",
    ".yaml": "Call the file .yaml, or write the prompts alone into a .txt, one a line.",
    ".csv": "Call the file .csv.",
}


def looks_like(line: str) -> str:
    """The suffix a file with this first line should have; empty where nothing is certain."""
    if begins_as_json(line):
        return ".json"
    if _YAML.match(line):
        return ".yaml"
    names = [plain_key(cell.strip(' "\r\n')) for cell in _MARKS.split(line)]
    return ".csv" if "prompt" in names and len(KNOWN.intersection(names)) > 1 else ""


def text_rows(stream: BinaryIO) -> Iterator[RawRow]:
    """The prompts of a plain list: one a line; blank lines and comments (``# ...``) are skipped.

    A line that begins with ``#`` and something other than a blank (``#1 fan``) is a prompt.
    Generation data is one row, its ``value`` the fields. Raises SteadyError bad_shape for what
    begins as another kind of file.
    """
    lines, pasted, begun = TextLines(stream), Pasted(), False
    for text in lines:
        text = text.strip(" \t\r\n")
        if not begun and (kind := looks_like(text)):
            message = f"Line {lines.number} is that of a {kind} file, not of a list of prompts."
            raise SteadyError("bad_shape", message, remedy=CALL_IT[kind])
        if text == "#" or text.startswith("# "):
            continue
        begun = begun or bool(text)
        for line, value in pasted.add(lines.number, text):
            yield RawRow(line, line, value=value)
    for line, value in pasted.rest():
        yield RawRow(line, line, value=value)


def refused_csv(rows: Callable[[], Iterable[Row]]) -> Iterator[bytes]:
    """The refused rows as a table with an ``error`` column, ready to mend and drop again.

    ``rows`` is asked twice (for the columns, then for the cells), so that a million of them
    never lie in memory. UTF-8 with a byte order mark, as spreadsheets want it. A text that one
    would take for a formula is guarded; reading a table with an ``error`` column undoes it.
    """
    columns = dict.fromkeys(name for row in rows() for name in row.cells if name != "error")

    def lines() -> Iterator[list[Any]]:
        for row in rows():
            error = " ".join(f"{p.message} {p.remedy or ''}".strip() for p in row.problems)
            yield [*map(row.cells.get, columns), error]

    return csv_pieces([*columns, "error"], lines())


def csv_pieces(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[bytes]:
    """A table for spreadsheets, in pieces: UTF-8 with a byte order mark, its cells guarded."""
    out = io.StringIO("\ufeff")
    out.seek(0, io.SEEK_END)
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(map(guarded, row))
        if out.tell() > _PIECE:
            yield _drain(out)
    yield _drain(out)


def _drain(out: io.StringIO) -> bytes:
    """What was written so far; ``out`` is empty afterwards."""
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text.encode("utf-8", "replace")


#: A number with a sign is no formula: spreadsheets leave it as it is.
_FORMULA = re.compile(r"'*([=@\t\r]|[+-](?!\d+([.,]\d+)?$))", re.ASCII)


def guarded(value: Any) -> Any:
    """``value`` with an apostrophe before it where a spreadsheet would take it for a formula."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def cells_of(value: Any) -> dict[str, str]:
    """A JSON row as cells, for :func:`refused_csv`."""
    if isinstance(value, Mapping):
        return {
            str(k): v
            if isinstance(v, str)
            else ""
            if v is None
            else json.dumps(v, ensure_ascii=False)
            for k, v in value.items()
        }
    return {"prompt": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
