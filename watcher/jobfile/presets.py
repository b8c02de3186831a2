"""A preset: one job without its picture or its prompt, under which other jobs are read.

What a file says itself goes before what the preset says, as with ``defaults``. Pure.
"""

from dataclasses import replace

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile import combine
from watcher.jobfile.planner import Planner, Template
from watcher.jobfile.problems import refusal
from watcher.jobfile.sheets import read_sheets
from watcher.jobfile.tables import decoded
from watcher.limits import Limits

#: Fields that would be the same for all that the preset is for, and what to do instead.
_NOT_SHARED = {
    "key": "Write it in the job file.",
    "image": "Drop the picture into the folder, or name it in the job file.",
}
_OF_A_PICTURE = {"mask", "strength", "resize"}


def read_preset(data: bytes, limits: Limits) -> Template:
    """What the YAML ``data`` says, each value checked as in a job.

    Raises SteadyError with every problem; :func:`in_preset` says whose they are.
    """
    read = read_sheets(decoded(data), ".yaml")
    if len(read) > 1 or read[0].batch or [item.path for item in read[0].items] != [()]:
        raise SteadyError("bad_shape", "A preset is one mapping of a job's fields.")
    sheet, (item,) = read[0], read[0].items
    said = item.template.values
    for key in said.keys() & _NOT_SHARED.keys():
        message = f"`{key}` cannot stand in a preset."
        sheet.fault("bad_placeholder", message, (key,), remedy=_NOT_SHARED[key])
    filled = {"prompt": "a picture"} | said
    if said.keys() & _OF_A_PICTURE or "{image}" in f"{said.get('name')}{said.get('folder')}":
        filled["image"] = "picture.png"
    probe = replace(item, template=replace(item.template, values=filled))
    planner = Planner(limits)
    combine.choose_combinations([probe_sheet := replace(sheet, items=[probe])], planner)
    for _, _, made in combine.pictures([probe_sheet], planner):
        sheet.problems += [each for each in made if isinstance(each, ValueFault)]
    if sheet.problems:
        raise refusal(sheet.problems)
    return item.template


def in_preset(error: SteadyError, name: str) -> SteadyError:
    """What is wrong with the preset ``name``, said of whatever was to be made with it."""
    file = f"presets/{name}.yaml"
    problems = [replace(problem, file=file) for problem in error.problems]
    return SteadyError("bad_preset", f"{file}: {error.message}", problems=problems)
