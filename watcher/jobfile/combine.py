"""Make the jobs of sheets: patterns, axes and samples, counted before the first job is built.

What the sheets say was checked when they were read (sheets.py). Knows nothing of files.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile import strictjson
from watcher.jobfile.expand import ExpansionFault, digest, sampled
from watcher.jobfile.fields import normalised
from watcher.jobfile.hints import KNOWN
from watcher.jobfile.planner import Planner, Template, keyed_apart
from watcher.jobfile.problems import refusal
from watcher.jobs import JobRequest

if TYPE_CHECKING:
    from watcher.jobfile.sheets import Item, Sheet


def inherit(sheets: "Sequence[Sheet]", preset: Template) -> None:
    """Puts what holds for every job under what each item says."""
    for sheet in sheets:
        for item in sheet.items:
            item.template.inherit(preset)


def spread_items(sheets: "Sequence[Sheet]", planner: Planner) -> None:
    """Makes one item for each picture that the ``image`` of an item matches. Raises SteadyError."""
    for sheet in sheets if planner.finder else ():
        items: list[Item] = []
        for item in sheet.items:
            faults: list[ValueFault] = []
            spread = list(planner.spread(item.template, faults))
            sheet.problems += [
                sheet.located(f, item.origins.get("image", item.path)) for f in faults
            ]
            sheet.many = sheet.many or len(spread) > 1
            items += [replace(item, template=replace(item.template, values=v)) for v in spread]
        sheet.items = items
    if problems := [problem for sheet in sheets for problem in sheet.problems]:
        raise refusal(problems)


def choose_combinations(sheets: "Sequence[Sheet]", planner: Planner) -> None:
    """Counts the pictures of a file and decides which combinations are made, building none.

    Raises SteadyError too_many_jobs with the count.
    """
    total, limits = 0, planner.limits
    for sheet in sheets:
        try:
            each = [planner.multiplicity(item.template.values) for item in sheet.items]
        except ExpansionFault as fault:
            raise SteadyError("too_many_jobs", f"{fault}") from None
        combinations = sheet.product.total
        if sheet.sample is None or sheet.sample >= combinations * len(each):
            total += combinations * sum(each)
            _refuse_more(total, limits.max_lines if sheet.many else limits.max_jobs_per_file)
            sheet.chosen = range(combinations * len(each))
        else:
            _refuse_more(total + sheet.sample, limits.max_jobs_per_file)
            said = json.dumps([item.raw for item in sheet.items], sort_keys=True)
            drawn = digest(planner.salt, "sample", said)
            sheet.chosen = sampled(combinations * len(each), sheet.sample, drawn)
            total += sum(each[which // combinations] for which in sheet.chosen)
            _refuse_more(total, limits.max_jobs_per_file)


def _refuse_more(total: int, most: int) -> None:
    if total > most:
        message = f"The file makes {total} jobs; {most} are allowed."
        allowed = f"at most {most}"
        raise ValueFault("too_many_jobs", message, value=str(total), allowed=allowed).error()


def pictures(
    sheets: "Sequence[Sheet]", planner: Planner
) -> "Iterator[tuple[int, Item, list[JobRequest] | list[ValueFault]]]":
    """Every chosen combination in order: the item's number in the file, from 1, the item, and
    its pictures or what is wrong with them, once for each item that was wrong to begin with."""
    index, before = 0, 1
    for sheet in sheets:
        made_of: dict[int, int] = {}
        for which in sheet.chosen:
            place, combination = divmod(which, sheet.product.total)
            item = sheet.items[place]
            number = item.number
            if item.template.problems and number in made_of:
                continue
            made = _pictures_of(sheet, item, sheet.product[combination], planner, index)
            requests = [m for m in made if isinstance(m, JobRequest)]
            if not requests:
                made_of.setdefault(number, 0)
                yield before + number, item, made
                continue
            already = made_of.get(number, 0)
            made_of[number] = already + len(requests)
            index += len(requests)
            yield before + number, item, keyed_apart(requests, already + 1)
        before += 1 + max((item.number for item in sheet.items), default=-1)


def _pictures_of(
    sheet: "Sheet", item: "Item", combination: dict[str, Any], planner: Planner, index: int
) -> list[JobRequest] | list[ValueFault]:
    template = item.template
    values, origins = dict(template.values), item.origins
    if ours := {name: v for name, v in combination.items() if name in KNOWN}:
        more, came_from, problems = normalised(ours)
        if problems:
            return [sheet.located(p, sheet.axes.get(p.key or "", ())) for p in problems]
        values |= {**more, **planner.preset.over}
        origins = origins | {f: sheet.axes[key] for f, key in came_from.items()}
    names = {name: _text_of(value) for name, value in combination.items()}
    made = planner.pictures(template, values, names, index)
    problems = [m for m in made if isinstance(m, ValueFault)]
    if not problems:
        return made
    return [sheet.located(p, origins.get(p.key or "") or item.path_of(p)) for p in problems]


def _text_of(value: Any) -> str:
    """A value as it was written: ``true``, ``1e3``, empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.source if isinstance(value, strictjson.Number) else str(value)
