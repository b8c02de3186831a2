"""Rows of .csv, .tsv, .jsonl and .txt, one at a time and in constant memory.

A table is read as spreadsheets write it: ``,`` ``;`` or tab, a byte order mark, quoted
line breaks, ``sep=;`` on top, column names in any case. Rows are numbered from 1 after the
header (a spreadsheet's row n+1), blank rows counted, and reading may begin at any row.
Knows the names of the fields a column may fill, nothing else of jobs.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from watcher import strictjson
from watcher.errors import Problem, SteadyError

MAX_LINE = 1 << 20  #: characters of one physical line

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes) -> str:
    """The encoding a byte order mark announces; UTF-8 without one."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), "utf-8")


def decoded(data: bytes) -> str:
    """The text of a whole file, without its byte order mark. Raises SteadyError encoding."""
    try:
        return data.decode(encoding_of(data[:4]))
    except UnicodeDecodeError as error:
        raise not_text(error, data) from None


def not_text(error: UnicodeDecodeError, data: bytes | None = None) -> SteadyError:
    """What is wrong with the bytes, where, and what they probably are."""
    position = error.start
    line = data[:position].count(b"\n") + 1 if data is not None else None
    if data is not None and data[:400].count(0) > len(data[:400]) // 4:
        guess = "it looks like UTF-16 without a byte order mark"
    else:
        guess = "it looks like Windows-1252 or Latin-1"
    where = f"Byte {position}" + (f" (line {line})" if line else "")
    message = f"{where} is not {error.encoding.upper()}; {guess}."
    remedy = "Save it as UTF-8 (in Excel: `CSV UTF-8`) and drop it again."
    problem = Problem("encoding", message, line=line, remedy=remedy)
    return SteadyError("encoding", message, problems=[problem], remedy=remedy)


@dataclass(slots=True)
class Row:
    """One row that is refused: what it held, by column, and why."""

    number: int
    line: int
    cells: Mapping[str, str]
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class RawRow:
    """One row as read: ``cells`` by column of the table, or a JSON ``value``."""

    number: int
    line: int
    cells: list[str] = field(default_factory=list)
    value: Any = None
    problem: Problem | None = None
    text: str = ""


class Lines:
    """Physical lines of a binary stream as text, each bounded, with the encoding found out.

    The stream is left open; it must be seekable and stand at its beginning.
    """

    def __init__(self, stream: BinaryIO) -> None:
        start = stream.tell()
        head = stream.read(4)
        stream.seek(start)
        self._text = io.TextIOWrapper(stream, encoding=encoding_of(head), newline="")
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        readline = self._text.readline
        try:
            while line := readline(MAX_LINE):
                self.number += 1
                if len(line) >= MAX_LINE:
                    message = f"Line {self.number} is longer than {MAX_LINE} characters."
                    problem = Problem("too_large", message, line=self.number)
                    raise SteadyError("too_large", message, problems=[problem])
                yield line
        except UnicodeDecodeError as error:
            message = f"After line {self.number}: the bytes are not {error.encoding.upper()} text."
            remedy = "Save it as UTF-8 (in Excel: `CSV UTF-8`) and drop it again."
            problem = Problem("encoding", message, line=self.number + 1, remedy=remedy)
            raise SteadyError("encoding", message, problems=[problem], remedy=remedy) from None

    def detach(self) -> None:
        self._text.detach()


def delimiter_of(line: str, suffix: str) -> str:
    """The separator of a header line; a character nobody types when there is one column."""
    counts = {mark: _outside_quotes(line, mark) for mark in ("\t", ";", ",")}
    best = max(counts, key=lambda mark: counts[mark])
    if suffix == ".tsv" and counts["\t"]:
        best = "\t"
    return best if counts[best] else "\x1f"


def _outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


class Table:
    """A .csv or .tsv: ``header`` (as written) and its rows."""

    def __init__(self, stream: BinaryIO, suffix: str) -> None:
        self._lines = Lines(stream)
        self._source = iter(self._lines)
        first = next((line for line in self._source if line.strip("\ufeff\r\n\t ,;")), None)
        separator = None
        if first is not None and first.lower().startswith("sep=") and len(first.rstrip()) == 5:
            separator = first.rstrip()[4]
            first = next((line for line in self._source if line.strip("\r\n\t ,;")), None)
        if first is None:
            raise SteadyError("empty_file", "The table is empty.")
        self._delimiter = separator or delimiter_of(first, suffix)
        self._reader = csv.reader(self._chain(first), delimiter=self._delimiter)
        self.header = [name.strip() for name in self._next() or []]

    def _chain(self, first: str) -> Iterator[str]:
        yield first
        yield from self._source

    def _next(self) -> list[str] | None:
        try:
            return next(self._reader, None)
        except csv.Error as error:
            line = self._lines.number
            message = f"Near line {line}: {error}."
            remedy = "Look for a quote that is opened and never closed."
            problem = Problem("bad_csv", message, line=line, remedy=remedy)
            raise SteadyError("bad_csv", message, problems=[problem], remedy=remedy) from None

    def rows(self) -> Iterator[RawRow]:
        """All rows that are not blank."""
        number = 0
        line = self._lines.number + 1
        while (cells := self._next()) is not None:
            number += 1
            if any(cells) and not all(not c or c.isspace() for c in cells):
                yield RawRow(number, line, cells)
            line = self._lines.number + 1

    def close(self) -> None:
        self._lines.detach()


def json_rows(stream: BinaryIO) -> Iterator[RawRow]:
    """The lines of a .jsonl that are not blank, each with its value or its problem."""
    lines = Lines(stream)
    try:
        for text in lines:
            if text.isspace():
                continue
            number = lines.number
            row = RawRow(number, number)
            try:
                row.value = strictjson.read(text.lstrip("\ufeff") if number == 1 else text)
            except SteadyError as error:
                row.text = text.strip()
                row.problem = error.problems[0]
            yield row
    finally:
        lines.detach()


def text_rows(stream: BinaryIO) -> Iterator[RawRow]:
    """The prompts of a plain list: one a line; blank lines and comments (``# ...``) are skipped.

    A line that begins with ``#`` and something other than a blank (``#1 fan``) is a prompt.
    """
    lines = Lines(stream)
    try:
        for text in lines:
            text = text.strip()
            if text and text != "#" and not text.startswith("# "):
                yield RawRow(lines.number, lines.number, value=text)
    finally:
        lines.detach()


def dump_refused(rows: "list[Row] | tuple[Row, ...]") -> bytes:
    """The refused rows as a table with an ``error`` column, ready to mend and drop again.

    UTF-8 with a byte order mark, as spreadsheets want it; the ``error`` column is ignored
    when the file is read.
    """
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row.cells))
    columns.pop("error", None)
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, "error"], extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        error = " ".join(f"{p.message} {p.remedy or ''}".strip() for p in row.problems)
        writer.writerow({**row.cells, "error": error})
    return out.getvalue().encode("utf-8-sig", "replace")


def cells_of(value: Any) -> dict[str, str]:
    """A JSON row as cells, for :func:`dump_refused`."""
    if isinstance(value, Mapping):
        return {
            str(k): v if isinstance(v, str) else "" if v is None else json.dumps(v, ensure_ascii=False)
            for k, v in value.items()
        }
    return {"prompt": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
