"""Rows of a table or a list of lines -> pictures and refused rows, one at a time.

Reads .csv, .tsv, .jsonl (also OpenAI batch lines) and .txt in constant memory. Knows nothing of
names, batches or the record.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile.batchline import batch_line_fields, is_batch_line
from watcher.jobfile.cells import reader_of
from watcher.jobfile.fields import TEXTS
from watcher.jobfile.foreign import fitted, line_fields
from watcher.jobfile.hints import FIELDS, SPELLINGS, meant_by, plain_key
from watcher.jobfile.kinds import Kinds
from watcher.jobfile.planner import (
    PlannedJob,
    Planner,
    Template,
    keyed_apart,
    template_of,
)
from watcher.jobfile.problems import MAX_PROBLEMS, at, shown, shown_key
from watcher.jobfile.tables import (
    CALL_IT,
    RawRow,
    Row,
    Table,
    cells_of,
    json_rows,
    looks_like,
    text_rows,
)
from watcher.jobs import JobRequest, Priority
from watcher.limits import Limits

#: Columns that are no fields and yet no metadata.
_ALSO_READ = frozenset({"size", "expand"})
_COLUMNS = SPELLINGS | {"id": "label"}


class Columns:
    """What the columns of a table mean.

    Raises SteadyError bad_csv without a ``prompt`` column where one is ``needed``, duplicate_key
    for one said twice.
    """

    def __init__(self, header: list[str], *, needed: bool = True) -> None:
        self.header = header
        self.warnings: list[str] = []
        self._fields: list[tuple[int, str, Callable[[str], Any]]] = []  # cell, field, its reader
        self._extra: list[tuple[int, str]] = []  # cell, header: goes to metadata
        self._nameless = {cell for cell, name in enumerate(header) if not name}
        self._shown: dict[str, str] = {}  # field -> header
        for cell, name in enumerate(header):
            self._assign(cell, name)
        if needed and "prompt" not in self._shown:
            raise self._no_prompt()

    def _assign(self, cell: int, name: str) -> None:
        plain = plain_key(name)
        field = _COLUMNS.get(plain, plain)
        if plain in ("", "error"):  # the error column of a .refused.csv
            return
        if plain == "id" and "label" in map(plain_key, self.header):
            field = "id"
        if field in self._shown:
            message = (
                f"`{shown_key(self._shown[field])}` and `{shown_key(name)}` name the same column."
            )
            raise ValueFault("duplicate_key", message, key=shown_key(name), line=1).error()
        self._shown[field] = name
        if field in FIELDS or field in _ALSO_READ:
            self._fields.append((cell, field, reader_of(field)))
            return
        self._extra.append((cell, name))
        if len(self.warnings) < 10 and (ours := meant_by(name)) and ours != "label":
            self.warnings.append(f"Column `{shown_key(name)}` goes to metadata; is `{ours}` meant?")

    def _no_prompt(self) -> SteadyError:
        near = next((n for n in self.header if n and meant_by(n) == "prompt"), None)
        message = "The first row must name the columns, one of them `prompt`."
        remedy = f"Call the column `{shown_key(near)}` `prompt`." if near else None
        if len(self.header) == 1:
            remedy = "Columns are separated by `,`, `;`, a tab or `|`."
        if kind := looks_like(self.header[0]):
            remedy = CALL_IT[kind]
        value = shown(self.header)
        return ValueFault(
            "bad_csv", message, key="prompt", line=1, value=value, remedy=remedy
        ).error()

    def column_of(self, field: str | None) -> str | None:
        """The header of the column that says ``field``, as written."""
        if field in ("width", "height") and field not in self._shown:
            field = "size"
        return shown_key(self._shown[field]) if field in self._shown else None

    def template(self, cells: list[str]) -> Template:
        """What a row says. Empty cells are unset."""
        problems: list[ValueFault] = []
        width = len(self.header)
        if len(cells) > width and any(c.strip() for c in cells[width:]):
            message = f"The row has {len(cells)} cells, the header {width}."
            remedy = "Put a text that holds the separator in quotes."
            problems.append(ValueFault("bad_csv", message, remedy=remedy))
        have = len(cells)
        given: dict[str, Any] = {}
        for cell, field, read in self._fields:
            if cell < have and (text := cells[cell]) and (value := read(text)) is not None:
                given[field] = value
        if self._nameless:
            self._leave_out(cells)
        if self._extra or "metadata" in given:
            self._add_metadata(cells, given, problems)
        if "size" in given or "expand" in given or len(given.get("prompt", "")) > 4000:
            template = template_of(given)
            template.problems = problems + template.problems
            return template
        return Template(given, problems=problems)

    def _leave_out(self, cells: list[str]) -> None:
        """Says, once for a column, that what stands in it without a name is not read."""
        for cell in [c for c in self._nameless if c < len(cells) and cells[c].strip()]:
            self._nameless.remove(cell)
            self.warnings.append(f"Column {cell + 1} has no name and was left out.")

    def _add_metadata(
        self, cells: list[str], given: dict[str, Any], problems: list[ValueFault]
    ) -> None:
        metadata: dict[str, Any] = {}
        written = given.pop("metadata", None)
        if written is not None:
            if isinstance(written, dict):
                metadata = written
            else:
                message = "`metadata` must be a JSON mapping."
                problems.append(
                    ValueFault("wrong_type", message, key="metadata", value=shown(written))
                )
                return
        for cell, name in self._extra:
            if cell < len(cells) and cells[cell].strip():
                metadata.setdefault(name, cells[cell])
        if metadata:
            given["metadata"] = metadata

    def given_back(self, cells: list[str]) -> dict[str, str]:
        """All cells of a row by column, also those that stand in none."""
        names = itertools.chain(self.header, itertools.repeat(""))
        return {
            name or f"column {number}": cell
            for number, (name, cell) in enumerate(zip(names, cells, strict=False), 1)
            if name or cell
        }

    def names(self, cells: list[str]) -> dict[str, str]:
        """Placeholders of a row: every column but the prompt's, as written and in lower case."""
        names: dict[str, str] = {}
        width = len(self.header)
        for name, text in itertools.zip_longest(self.header, cells[:width], fillvalue=""):
            if name and plain_key(name) != "prompt":
                names.setdefault(plain_key(name), text.strip())
                names[name] = text.strip()
        return names


class RowIterator:
    """What :func:`watcher.jobfile.read_lines` returns: PlannedJob and refused Row, to be gone
    through once.

    ``warnings`` hold for the whole file. Raises SteadyError for what spoils the whole file.
    """

    def __init__(self, stream: BinaryIO, form: str, planner: Planner) -> None:
        self._warnings: list[str] = []
        self._planner = planner
        self._index = 0
        self._columns: Columns | None = None
        self._raw, self._read = self._opened(stream, form)

    def _opened(
        self, stream: BinaryIO, form: str
    ) -> tuple[Iterator[RawRow], Callable[[RawRow], Template]]:
        if form in (".csv", ".tsv"):
            table = Table(stream, form)
            needed = "prompt" not in self._planner.preset.values
            self._columns = columns = Columns(table.header, needed=needed)
            self._warnings = columns.warnings
            self._warnings += table.warnings
            return table.rows(), lambda raw: columns.template(raw.cells)
        if form == ".jsonl":
            limits = self._planner.limits
            return json_rows(stream), lambda raw: _template_of_line(raw, limits)
        return text_rows(stream), self._template_of_text

    @property
    def warnings(self) -> list[str]:
        """What is to be told of the rows read so far, as a whole."""
        return [*self._warnings, *self._planner.marks.warnings]

    def _template_of_text(self, raw: RawRow) -> Template:
        """A line of a list: a prompt, or what another program writes there."""
        said: tuple[dict[str, Any], list[str]] | None = None
        if isinstance(raw.value, dict):
            said = raw.value, []
        elif isinstance(raw.value, str):
            said = line_fields(raw.value)
        if said is None:
            return Template({"prompt": raw.value})
        fields, warnings = fitted(said[0], self._planner.limits)
        template = template_of(fields)
        template.warnings = (*said[1], *warnings)
        self._planner.marks.read(raw.line)
        return template

    def __iter__(self) -> "Iterator[PlannedJob | Row]":
        most, planner = self._planner.limits.max_lines, self._planner
        kinds = Kinds(planner)
        for rows, raw in enumerate(self._raw, 1):
            if rows > most:
                raise _too_many("rows", most)
            if raw.problem is not None:
                yield self._refused(raw, [raw.problem], {})
                continue
            template = self._read(raw)
            template.inherit(planner.preset)
            kind, own = kinds.of(template)
            if (planned := kinds.again(kind, own, raw.number)) is not None:
                yield self._counted(planned)
                continue
            made, problems = self._pictures(raw, template)
            if problems:
                yield self._refused(raw, problems, template.came_from)
                continue
            for each in made:
                planned = planner.planned(each, raw.number, Priority.NORMAL, template.warnings)
                if len(made) == 1:
                    kinds.keep(kind, planned)
                yield self._counted(planned)
        if planner.finder:
            planner.finder.flush()

    def _pictures(
        self, raw: RawRow, template: Template
    ) -> tuple[list[JobRequest], list[ValueFault]]:
        """The pictures of a row, and what is wrong with it."""
        planner = self._planner
        values = template.values
        names: Mapping[str, str] = {}
        if self._columns is not None and _has_braces(values):
            names = self._columns.names(raw.cells)
        made: list[JobRequest] = []
        problems: list[ValueFault] = []
        for said in planner.spread(template, problems) if "image" in values else (values,):
            for each in planner.pictures(template, said, names, self._index + len(made)):
                if isinstance(each, ValueFault):
                    problems.append(each)
                else:
                    made.append(each)
        return keyed_apart(made), problems

    def _counted(self, planned: PlannedJob) -> PlannedJob:
        """``planned``, unless it is one too many."""
        self._index += 1
        if self._index > self._planner.limits.max_lines:
            raise _too_many("jobs", self._planner.limits.max_lines)
        return planned

    def _refused(
        self, raw: RawRow, problems: list[ValueFault], came_from: Mapping[str, str]
    ) -> Row:
        """The row as it goes back to the person, each problem by the name they used."""
        columns = self._columns
        located = []
        for problem in problems[:MAX_PROBLEMS]:
            said = came_from.get(problem.key or "")
            if columns is not None:
                said = columns.column_of(said or problem.key)
            located.append(at(problem, said, row=raw.number, line=raw.line))
        if columns is None:
            cells = cells_of(raw.value)
        else:
            cells = columns.given_back(raw.cells)
        return Row(raw.number, raw.line, cells, tuple(located))


def _has_braces(values: Mapping[str, Any]) -> bool:
    for key in TEXTS:
        text = values.get(key)
        if type(text) is str and "{" in text:
            return True
    return False


def _template_of_line(raw: RawRow, limits: Limits) -> Template:
    """A JSON line: a mapping, a prompt alone, or a line of an OpenAI batch file."""
    value = raw.value
    if is_batch_line(value):
        try:
            value, said = batch_line_fields(value, limits)
        except SteadyError as error:
            return Template(problems=list(error.problems))
        template = template_of(value)
        template.warnings = said
        return template
    return template_of(value)


def _too_many(what: str, most: int) -> SteadyError:
    message = f"The file has more than {most} {what}."
    remedy = "Split it, or raise `max_lines` in config.yaml."
    return ValueFault("too_many_jobs", message, allowed=f"at most {most}", remedy=remedy).error()
