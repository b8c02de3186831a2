"""YAML as people type it: JSON types only, nothing clever, never a dead process."""

import subprocess
import sys
import time

import pytest
from conftest import SECONDS

from watcher.errors import SteadyError
from watcher.jobfile.strictyaml import MAX_DEPTH, Number, read_yaml


def value(text: str) -> object:
    (document,) = read_yaml(text, text_keys={"prompt"}, text_lists={"jobs"})
    return document.value


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("16:9", "16:9"), ("12:30:00", "12:30:00"),
        ("2026-01-21", "2026-01-21"), ("0123", "0123"), ("0x1f", "0x1f"), ("1_000", "1_000"),
        (".5", ".5"), ("+5", "+5"), (".inf", ".inf"), (".nan", ".nan"), ("True", "True"),
        ("1e999", "1e999"), ("9" * 500, "9" * 500),
        ("12", 12), ("-3", -3), ("0", 0), ("1.50", 1.5), ("1e3", 1000.0), ("-0.5", -0.5),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("'12'", "12"), ('"true"', "true"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_scalars_are_jsons_types_and_everything_else_is_text(text: str, meant: object) -> None:
    found = value(f"x: {text}")
    assert found == {"x": meant}
    assert isinstance(found, dict) and type(found["x"]) in (type(meant), Number)


@pytest.mark.parametrize("text", ["12", "1e3", "true", "no", "0123", "12:30:00", "-1", "1.50"])
def test_a_text_key_takes_what_was_typed(text: str) -> None:
    assert value(f"prompt: {text}") == {"prompt": text}
    assert value(f"- {text}") == [text]
    assert value(f"jobs: [{text}]") == {"jobs": [text]}


def test_a_number_remembers_how_it_was_written() -> None:
    found = value("x: [1.50, 1e3]")
    assert isinstance(found, dict)
    assert [n.source for n in found["x"]] == ["1.50", "1e3"]


def test_blocks_folds_and_quotes_keep_their_hashes_and_colons() -> None:
    text = "a: |\n  cat #1: best\n  two\nb: 'it''s #2'\nc: >-\n  x\n  y\nd: \"\\u00e9 #3\"\n"
    assert value(text) == {
        "a": "cat #1: best\ntwo\n", "b": "it's #2", "c": "x y", "d": "é #3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: &x 1", "unsafe_yaml", 1, 4),
        ("a: 1\nb: *a", "unsafe_yaml", 2, 4),
        ("a: !!python/object:os.system x", "unsafe_yaml", 1, 4),
        ("a: !wow", "unsafe_yaml", 1, 4),
        ("- &x [1]", "unsafe_yaml", 1, 3),
        ("%TAG ! tag:x,2000:\n---\na: 1", "unsafe_yaml", 1, 1),
        ("base: {x: 1}\n<<: {x: 2}", "unsafe_yaml", 2, 1),
        ("a: 1\nb: 2\na: 3", "duplicate_key", 3, 1),
        ("? [a, b]\n: c", "bad_yaml", 1, 3),
        ("a: b: c", "bad_yaml", 1, 5),
        ("a:\n\t- b", "bad_yaml", 2, 1),
        ("a: 'open\nb: 2\n", "bad_yaml", 1, 4),
        ("a: 1\nb: \x07", "bad_yaml", 2, 4),
        ("prompt: a cat #1 best", "prompt_cut_at_hash", 1, 9),
        ("prompt: #1 best", "prompt_cut_at_hash", 1, 8),
        ("- fox\n- owl #2", "prompt_cut_at_hash", 2, 3),
        ("x: [red #1\n]", "prompt_cut_at_hash", 1, 5),
        ("é: ü\nprompt: 🦊 fox  # best", "prompt_cut_at_hash", 2, 9),
    ],
)
def test_what_is_refused_names_its_place(text: str, code: str, line: int, column: int) -> None:
    with pytest.raises(SteadyError) as caught:
        value(text)
    assert caught.value.code == code
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (line, column)
    assert problem.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text", ["width: 768 # pixels", "seed: # none", "# only\na: 1", "a: 'x' # y"]
)
def test_comments_that_cut_nothing_off_are_comments(text: str) -> None:
    assert value(text) is not None


def test_a_comment_may_follow_where_the_caller_says_so() -> None:
    (document,) = read_yaml("format: png # or webp", comment_keys={"format"})
    assert document.value == {"format": "png"}


def test_every_key_and_item_has_a_place() -> None:
    text = "défaut: {width: 7}\njobs:\n  - prompt: x\n    seed: 1\n  - [2,\n     3]\n"
    (document,) = read_yaml(text)
    assert document.place(("défaut", "width")) == (1, 10)
    assert document.place(("jobs", 0, "seed")) == (4, 5)
    assert document.place(("jobs", 1, 1)) == (6, 6)
    assert document.place(("jobs", 9, "nothing")) == (2, 1)
    assert document.place(()) == (1, 1)


def test_documents_know_where_they_begin() -> None:
    documents = read_yaml("a: 1\n---\nb: 2\n---\n")
    assert [d.value for d in documents] == [{"a": 1}, {"b": 2}, None]
    assert documents[1].place(("b",)) == (3, 1)


def test_line_ends_of_every_system_read_alike() -> None:
    assert value("a: x\r\nb: y\r\n") == value("a: x\nb: y\n") == value("a: x\rb: y\r")


def test_nesting_ends_at_the_limit() -> None:
    assert value("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(SteadyError) as caught:
        value("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert caught.value.code == "unsafe_yaml"


BOMBS = {
    "brackets": "[" * 25_000,
    "braces": "{" * 1_000_000,
    "flow pairs": "[{a: " * 200_000,
    "dashes": "- " * 500_000,
    "questions": "? " * 500_000,
    "indented": "".join(f"{' ' * n}a:\n" for n in range(1000)),
    "laughs": "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "merges": "a: &a {b: 1}\nc: {<<: *a}",
    "items": "- a\n" * 262_144,
    "documents": "---\n" * 262_144,
    "one key": "a" * 1_000_000 + ": b",
    "hashes": "#" * 1_000_000,
    "quotes": '"' * 1_000_000,
    "percents": "%" * 1_000_000,
    "exclamations": "!" * 1_000_000,
    "tabs": "\t" * 1_000_000,
    "commas": "[" + "," * 1_000_000,
    "colons": ": " * 500_000,
    "open scalar": '"' + "\\n" * 500_000,
    "empty pairs": "a:\n" * 300_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_or_read_in_linear_time(name: str) -> None:
    begun = time.process_time()
    try:
        read_yaml(BOMBS[name])
    except SteadyError as error:
        assert error.problems
    assert time.process_time() - begun < SECONDS


def test_a_megabyte_of_text_is_read_at_once() -> None:
    begun = time.process_time()
    assert value("prompt: |\n" + "  " + "x" * 1_000_000)
    assert value("prompt: " + "x y " * 250_000)
    assert time.process_time() - begun < SECONDS


def test_deep_brackets_do_not_kill_the_process() -> None:
    """In a process of its own: a SIGSEGV would take the whole test run with it."""
    code = (
        "from watcher.jobfile.strictyaml import read_yaml\n"
        "from watcher.errors import SteadyError\n"
        "for text in ('[' * 100_000, '[' * 20_000 + ']' * 20_000, '{a: ' * 100_000):\n"
        "    try: read_yaml(text)\n"
        "    except SteadyError as error: print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["unsafe_yaml"] * 3)


@pytest.mark.parametrize(
    ("line", "message", "remedy"),
    [
        ("prompt: a cat: the movie", "A colon with a blank after it", "quotes"),
        ("prompt: @cat", "cannot begin with this character", "quotes"),
        ("prompt: *best* cat", "cannot begin with `*` or `&`", "prompt: |"),
        ("prompt: [masterpiece], cat", "goes on after", "quotes"),
        ("prompt: 'it's'", "goes on after", "quotes"),
        ("prompt: 'open", "never closed", "write '' for one '"),
        (r'prompt: "C:\Users"', "backslash", r"Write \\ for a backslash"),
        ("prompt: [a, b", "not closed", "quotes"),
    ],
)
def test_the_parsers_complaints_are_told_in_plain_words(
    line: str, message: str, remedy: str
) -> None:
    with pytest.raises(SteadyError) as caught:
        value(f"width: 512\n{line}\nseed: 1\n")
    (problem,) = caught.value.problems
    assert message in problem.message
    assert remedy in str(problem.remedy)
    if problem.line == 2:  # an open bracket is noticed on the next line only
        assert (problem.key, problem.value) == ("prompt", repr(line))
    assert caught.value.message.startswith(f"Line {problem.line}: ")
