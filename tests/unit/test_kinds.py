"""A row like an earlier one is what it would be without that one."""

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from watcher.jobfile import read_lines
from watcher.jobfile.planner import PlannedJob, Planner, Template
from watcher.jobfile.tables import Row
from watcher.jobs import MAX_PROMPT, MAX_SEED
from watcher.limits import Limits

LIMITS = Limits()
#: What changes what a row becomes, beside the row.
SETTINGS: list[dict[str, Any]] = [
    {"limits": LIMITS},
    {"limits": Limits(default_name="{prompt}-{index}")},
    {"limits": LIMITS, "preset": Template({"width": 512, "negative_prompt": "blur"})},
    {"limits": LIMITS, "preset": Template({"label": "{seed}"})},
    {"limits": LIMITS, "preset": Template({"image": "a.png"})},
    {"limits": LIMITS, "preset": Template(wild=True)},
]

_ODD: dict[str, list[Any]] = {
    "prompt": ["a fox", " fox ", "", None, "a\tb", "\x00", "x" * (MAX_PROMPT + 1), 5, "{label}"],
    "negative_prompt": ["blur", None, " ", 1.0, "{index}"],
    "label": ["row 1", None, " l", "x" * 501, "{index}"],
    "seed": [1, 0, -1, True, 1.0, MAX_SEED, MAX_SEED + 1, None, "1", [1, 2]],
    "name": ["cat", "con", "a/b", "é", "x.png", None, "{index:04}"],
    "metadata": [{"a": "b"}, {"a": None}, {1: "b"}, {"a": [1]}, {"a": "\x00"}, {"a": 2**80}, []],
    "key": ["k", "", "k" * 201, None],
    "width": [512, 512.0, True, 513, "512", None],
    "height": [512, 4096],
    "num_inference_steps": [1, True, 1.0],
    "count": [1, True, 2],
    "lora": [None, [], ["ink"], "ink", [1]],
    "format": ["png", "PNG", "gif"],
    "model": [None, "nobody"],
    "folder": [None, "a", "{label}", "{date}"],
    "image": [None, "cat", "{name}"],
    "mask": [None, "cat"],
    "expand": [None, "wildcards"],
    "nonsense": [None, 1],
}
_ODD["prompt"] += [
    "a {a|b|c} fox",
    "{seed} foxes, {index}",
    "a (fox:1.2) --ar 16:9",
    "a __colour__ fox",
]

ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from(_ODD["prompt"])},
        optional={name: st.sampled_from(few) for name, few in _ODD.items() if name != "prompt"},
    ),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@settings(deadline=None, max_examples=60)
@given(ROWS, st.sampled_from(SETTINGS))
@example([{"prompt": "a", "width": 512}, {"prompt": "b", "width": 512.0}], SETTINGS[0])
@example([{"prompt": "a"}, {"prompt": "b", "key": "k"}, {"prompt": "c", "key": "l"}], SETTINGS[0])
@example([{"prompt": "a", "num_inference_steps": n} for n in (1, True)], SETTINGS[0])
@example([{"prompt": "a", "seed": n, "count": 2} for n in (1, MAX_SEED)], SETTINGS[0])
@example([{"prompt": "a", "folder": "{index}"}, {"prompt": "b", "folder": "{index}"}], SETTINGS[0])
@example([{"prompt": p, "expand": "wildcards"} for p in ("a", "__b__")], SETTINGS[0])
@example([{"prompt": "a"}, {"prompt": "b"}], SETTINGS[1])
@example([{"prompt": "a"}, {"prompt": "b"}], SETTINGS[3])
def test_a_row_is_what_it_is_alone(
    suffix: str, rows: list[dict[str, Any]], said: dict[str, Any]
) -> None:
    """Alone: behind rows that it is like none of, as many as there are pictures before it."""
    together = _read(suffix, rows, said)
    before = 0
    for number, row in enumerate(rows, 1):
        padding = [{"prompt": "a", "folder": f"f{n}"} for n in range(before)]
        mine = [each for each in together if _number(each) == number]
        alone = _read(suffix, [*padding, row], said)[before:]
        assert [*map(_told, mine)] == [*map(_told, alone)]
        before += sum(isinstance(each, PlannedJob) for each in mine)


def _read(suffix: str, rows: list[dict[str, Any]], said: dict[str, Any]) -> list[PlannedJob | Row]:
    if suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, [*_ODD, "of nobody"])
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            writer.writerow(cells | {"of nobody": "x"})
        text = out.getvalue()
    return list(read_lines(io.BytesIO(text.encode()), suffix, Planner(salt="t", **said)))


def _number(each: PlannedJob | Row) -> int | None:
    return each.row if isinstance(each, PlannedJob) else each.number


def _told(each: PlannedJob | Row) -> object:
    """All that is known of a picture or a refused row, but for where it stands."""
    if isinstance(each, Row):
        return each.cells, [(p.code, p.key, p.message, p.value) for p in each.problems]
    request = each.request
    return (
        request.model_dump_json(),
        request.model_fields_set,
        each.stem,
        each.warnings,
        each.not_before,
        each.priority,
    )
