"""JSON with nothing loose in it, and the line of everything that is wrong."""

import time

import pytest
from conftest import SECONDS

from watcher.errors import SteadyError
from watcher.jobfile.strictjson import JsonDocument, read_json

TEXT = """{"a": 1,
 "jobs": [
  {"prompt": "x: {,[", "a": {}},
  {"prompt": "\\u00e9", "metadata": {"artist": "y"},
   "width": 7}
 ], "empty": [], "last": [1,
 2]}
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((), (1, 1)),
        (("a",), (1, 2)),
        (("jobs",), (2, 2)),
        (("jobs", 0), (3, 3)),
        (("jobs", 0, "a"), (3, 24)),
        (("jobs", 1, "metadata", "artist"), (4, 37)),
        (("jobs", 1, "width"), (5, 4)),
        (("last", 1), (7, 2)),
        (("jobs", 1, "nothing"), (4, 3)),
        (("jobs", 7, "x"), (2, 2)),
        (("nothing",), (1, 1)),
    ],
)
def test_a_value_has_a_line_and_a_column(
    path: tuple[str | int, ...], place: tuple[int, int]
) -> None:
    assert JsonDocument(TEXT).place(path) == place


def test_places_may_be_asked_for_in_any_order() -> None:
    document = JsonDocument(TEXT)
    assert document.place(("last", 1)) == (7, 2)
    assert document.place(("a",)) == (1, 2)


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ('{"a": 1,\n "a": 2}', "duplicate_key", 2),
        ('{"\\ud800": 1, "\\ud800": 2}', "duplicate_key", None),
        ("[NaN]", "bad_json", 1),
        ("[-Infinity]", "bad_json", 1),
        ("[1e999]", "bad_json", 1),
        ("9" * 5000, "bad_json", 1),
        ('{"a":', "bad_json", 1),
        ('{"a": 1}\n{"a": 2}', "bad_json", 2),
        ("[1,]", "bad_json", 1),
        ("// no\n1", "bad_json", 1),
        ("[" * 100_000, "unsafe_yaml", None),
        ("[" * 17 + "]" * 17, "unsafe_yaml", None),
        ("[" + "0," * 500_000 + "0]", "too_large", None),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, code: str, line: int | None) -> None:
    begun = time.process_time()
    with pytest.raises(SteadyError) as caught:
        read_json(text)
    assert caught.value.code == code
    assert caught.value.problems[0].line == line
    assert time.process_time() - begun < SECONDS


def test_a_number_remembers_how_it_was_written() -> None:
    assert [n.source for n in read_json("[1.50, 1e3]")] == ["1.50", "1e3"]
