"""Rows of .csv, .tsv, .jsonl and .txt, one at a time and in constant memory.

A table is read as spreadsheets write it: ``,`` ``;`` or tab, a byte order mark, quoted
line breaks, ``sep=;`` on top, column names in any case. Rows are numbered from 1 after the
header (a spreadsheet's row n+1), blank rows counted, and reading may begin at any row.
Knows the names of the fields a column may fill, nothing else of jobs.
"""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from watcher.errors import Problem, SteadyError
from watcher.jobfile import strictjson

MAX_LINE = 1 << 20  #: characters of one physical line

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_LOOKS_LATIN = "it looks like Windows-1252 or Latin-1"


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
        guess = _LOOKS_LATIN
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
    """One row as read: ``cells`` of a table, or a JSON ``value`` (its text if there is a ``problem``).

    ``line`` is the physical line it begins on.
    """

    number: int
    line: int
    cells: list[str] = field(default_factory=list)
    value: Any = None
    problem: Problem | None = None


class _Text(io.TextIOWrapper):
    """Text over a stream that stays open when this goes away."""

    def close(self) -> None:
        """Leaves closing to whoever opened the stream."""


class Lines:
    """Physical lines of a binary stream as text, each bounded, with the encoding found out.

    The stream is left open; it must be seekable and stand at its beginning.
    """

    def __init__(self, stream: BinaryIO) -> None:
        start = stream.tell()
        head = stream.read(4)
        stream.seek(start)
        self._text = _Text(stream, encoding=encoding_of(head), newline="")
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
            # what was decoded before this block ended inside the line that comes next
            torn = self.number + 1 + error.object.count(b"\n", 0, error.start)
            message = f"Line {torn} is not {error.encoding.upper()}; {_LOOKS_LATIN}."
            remedy = "Save it as UTF-8 (in Excel: `CSV UTF-8`) and drop it again."
            problem = Problem("encoding", message, line=torn, remedy=remedy)
            raise SteadyError("encoding", message, problems=[problem], remedy=remedy) from None


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
    """A .csv or .tsv: ``header`` as written and, from :meth:`rows`, what stands below it.

    Raises SteadyError empty_file, encoding, too_large, or bad_csv for a quote that never ends.
    """

    def __init__(self, stream: BinaryIO, suffix: str) -> None:
        self._lines = Lines(stream)
        self._quotes = 0  # in the physical lines since the last row
        source = iter(self._lines)
        first = next((line for line in source if line.strip("\r\n\t ,;")), None)
        separator = None
        if (
            first is not None
            and first.lower().startswith("sep=")
            and len(first.rstrip("\r\n")) == 5
        ):
            separator = first[4]
            first = next((line for line in source if line.strip("\r\n\t ,;")), None)
        if first is None:
            raise SteadyError("empty_file", "The table is empty.")
        delimiter = separator or delimiter_of(first, suffix)
        self._reader = csv.reader(self._counted(first, source), delimiter=delimiter)
        self.header = [name.strip() for name in self._next(1) or []]

    def _counted(self, first: str, source: Iterator[str]) -> Iterator[str]:
        for line in itertools.chain([first], source):
            self._quotes += line.count('"')
            yield line

    def _next(self, line: int) -> list[str] | None:
        self._quotes = 0
        try:
            return next(self._reader, None)
        except csv.Error:  # a cell of more than 128 KiB
            raise SteadyError(
                "bad_csv", f"Line {line}: {_UNCLOSED}", problems=[_unclosed(line)], remedy=_CLOSE
            ) from None

    def rows(self) -> Iterator[RawRow]:
        """All rows that are not blank, with a problem where a quote swallowed further lines."""
        number = 0
        line = self._lines.number + 1
        while (cells := self._next(line)) is not None:
            number += 1
            if any(cells) and not all(not c or c.isspace() for c in cells):
                row = RawRow(number, line, cells)
                if self._quotes % 2 and self._lines.number > line:
                    row.problem = _unclosed(line)
                yield row
            line = self._lines.number + 1


def written(stream: BinaryIO, suffix: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a .csv or .tsv, and each row's number with its cells, as they stand there."""
    table = Table(stream, suffix)
    return table.header, ((row.number, row.cells) for row in table.rows())


_UNCLOSED = "a quote is opened and never closed."
_CLOSE = 'Close the quote; inside a quoted cell write "" for one ".'


def _unclosed(line: int) -> Problem:
    return Problem("bad_csv", _UNCLOSED.capitalize(), line=line, remedy=_CLOSE)


def json_rows(stream: BinaryIO) -> Iterator[RawRow]:
    """The lines of a .jsonl that are not blank, each with its value or its problem."""
    lines = Lines(stream)
    for text in lines:
        if text.isspace():
            continue
        row = RawRow(lines.number, lines.number)
        try:
            row.value = strictjson.read(text)
        except SteadyError as error:
            row.value = text.strip()
            problem = error.problems[0]
            message = problem.message.removeprefix("Line 1, ")
            message = message[:1].upper() + message[1:]
            row.problem = replace(problem, message=message, line=lines.number)
        yield row


def text_rows(stream: BinaryIO) -> Iterator[RawRow]:
    """The prompts of a plain list: one a line; blank lines and comments (``# ...``) are skipped.

    A line that begins with ``#`` and something other than a blank (``#1 fan``) is a prompt.
    """
    lines = Lines(stream)
    for text in lines:
        text = text.strip()
        if text and text != "#" and not text.startswith("# "):
            yield RawRow(lines.number, lines.number, value=text)


def dump_refused(rows: Sequence[Row]) -> bytes:
    """:func:`refused_csv` of a few rows, whole."""
    return b"".join(refused_csv(lambda: rows))


def refused_csv(rows: Callable[[], Iterable[Row]]) -> Iterator[bytes]:
    """The refused rows as a table with an ``error`` column, ready to mend and drop again.

    ``rows`` is asked twice (for the columns, then for the cells), so that a million of them
    never lie in memory. UTF-8 with a byte order mark, as spreadsheets want it; the ``error``
    column is ignored when the file is read.
    """
    columns = dict.fromkeys(name for row in rows() for name in row.cells if name != "error")
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, "error"], extrasaction="ignore", lineterminator="\r\n")
    out.write("\ufeff")
    writer.writeheader()
    for row in rows():
        error = " ".join(f"{p.message} {p.remedy or ''}".strip() for p in row.problems)
        writer.writerow({**row.cells, "error": error})
        if out.tell() > 1 << 16:
            yield _taken(out)
    yield _taken(out)


def _taken(out: io.StringIO) -> bytes:
    """What was written so far; ``out`` is empty afterwards."""
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text.encode("utf-8", "replace")


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
