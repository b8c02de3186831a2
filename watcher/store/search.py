"""The index that finds jobs: by any part of their words, and by marks such as ``seed=7``.

A row of ``search`` holds what its job is found by. The watcher puts jobs there in the order of
their rows, some at a time and only after they are on record, so recording does not wait for it; a
record of before gets them while the service runs. The highest job there says how far that has come:
a crash leaves nothing half done. Part of :class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

import json
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from watcher.store.database import Database
from watcher.store.imagenames import folded
from watcher.store.schema import Row
from watcher.upscaling import enlarged

#: What :func:`words_of_row` and :func:`marks_of` need of a job.
SEARCHED = (
    "seq, prompt, request, image_name, model, loras,"
    " (SELECT name FROM batches AS b WHERE b.ticket = jobs.ticket) AS file"
)
_AT_ONCE = 200  #: jobs in one transaction, some hundredths of a second
_MOST_PIECES = 40  #: of a text that are looked up; the row itself is compared with the whole


def words_of_row(row: Row) -> str:
    """All words of a job, folded: prompt, picture's name, file, label, metadata."""
    words = [row["prompt"], row["image_name"], row["file"] or ""]
    if '"label"' in row["request"] or '"metadata"' in row["request"]:
        said = json.loads(row["request"])
        words.append(said.get("label") or "")
        words += (f"{key} {value}" for key, value in (said.get("metadata") or {}).items())
    return _storable("\n".join(words))


def marks_of(row: Row) -> str:
    """All marks of a job, a blank before and behind each."""
    said: dict[str, Any] = json.loads(row["request"])
    width, height = enlarged(said.get("width") or 0, said.get("height") or 0, said.get("upscale"))
    marks = [
        mark("seed", said.get("seed")), mark("size", f"{width}x{height}"),
        mark("model", row["model"]),
        *(mark("lora", name) for name in row["loras"].split(", ") if name),
    ]  # fmt: skip
    if said.get("label"):
        marks.append(mark("label", said["label"]))
    return f" {' '.join(marks)} "


def mark(kind: str, value: object) -> str:
    """``kind=value`` in one word of ASCII, alike for every case of ``value``."""
    return f"{kind}={urllib.parse.quote(_storable(str(value)), safe='')}"


def _storable(text: str) -> str:
    """``text`` folded, without what no database takes."""
    return folded(text).encode("utf-8", "replace").decode().replace("\0", "")


def _part(text: str) -> str:
    """The LIKE pattern for anything that has ``text`` in it."""
    plain = re.sub(r"([!%_])", r"!\1", text)
    return f"%{plain}%"


@dataclass(frozen=True)
class Sought:
    """What of ``search`` a job must have: ``words`` in its words; of each of ``marks`` one."""

    words: str
    marks: Sequence[Sequence[str]]

    @classmethod
    def of(cls, text: str | None, **kinds: Sequence[object]) -> "Sought":
        """``text``: any part of the words. ``kinds``: the values that will do, () for any."""
        marks = [[mark(kind, value) for value in values] for kind, values in kinds.items()]
        return cls(_storable(text or ""), [some for some in marks if some])

    def __bool__(self) -> bool:
        return bool(self.words or self.marks)

    def fits(self, row: Row) -> bool:
        """Does a job that is not in the index yet have it? ``row``: with ``SEARCHED``."""
        if self.words and self.words not in words_of_row(row):
            return False
        marks = marks_of(row) if self.marks else ""
        return all(any(f" {one} " in marks for one in some) for some in self.marks)

    def conditions(self) -> tuple[list[str], dict[str, str]]:
        """The same as SQL on ``search``, with the values it binds."""
        where, values = [], {}
        if self.words:
            where.append("search.words LIKE :words ESCAPE '!'")
            values["words"] = _part(self.words)
        for n, some in enumerate(self.marks):
            values |= {f"mark_{n}_{k}": _part(f" {one} ") for k, one in enumerate(some)}
            each = [f"search.marks LIKE :mark_{n}_{k} ESCAPE '!'" for k in range(len(some))]
            where.append(f"({' OR '.join(each)})")
        return where, values

    def matches(self) -> dict[str, str]:
        """SQLite's indexes that narrow it down, with what each is asked for."""
        found = {}
        if self.marks:
            anyone = (" OR ".join(f'"{one}"' for one in some) for some in self.marks)
            found["search_marks"] = " AND ".join(f"({some})" for some in anyone)
        pieces = dict.fromkeys(self.words[n : n + 3] for n in range(len(self.words) - 2))
        if pieces:
            quoted = (piece.replace('"', '""') for piece in pieces)
            some = [f'"{piece}"' for piece in quoted][:_MOST_PIECES]
            found["search_words"] = " AND ".join(some)
        return found


class Searched(Database):
    """Keeping the index."""

    def index_some(self, limit: int = _AT_ONCE) -> int:
        """Put the next jobs into the index; how many, 0 when all are there. Watcher only."""
        indexed = "(SELECT COALESCE(max(job), 0) FROM search)"
        if not self.poll(f"SELECT 1 FROM jobs WHERE seq > {indexed} LIMIT 1"):
            return 0
        with self.write():
            rows = self.run(
                f"SELECT {SEARCHED} FROM jobs WHERE seq > {indexed} ORDER BY seq LIMIT :limit",
                limit=limit,
            )
            found = [(row["seq"], words_of_row(row), marks_of(row)) for row in rows]
            self.insert("search", ("job", "words", "marks"), found)
        return len(rows)

    def _index_again(self, seqs: Sequence[int]) -> None:
        """After a change of what these jobs are found by, in the transaction of the change."""
        rows = self.run(f"SELECT {SEARCHED} FROM jobs WHERE seq IN ({', '.join(map(str, seqs))})")
        for column, said in (("words", words_of_row), ("marks", marks_of)):
            self.run_many(
                f"UPDATE search SET {column} = :value WHERE job = :seq AND {column} <> :value",
                [{"seq": row["seq"], "value": said(row)} for row in rows],
            )
