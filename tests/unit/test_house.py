"""The house itself: what is written down about it is what it is."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from history import TRANSITIONS
from written import WRITTEN

from watcher.commands.setup import HEADINGS, config_text
from watcher.config import Config
from watcher.errors import ERRORS
from watcher.jobfile import parse
from watcher.jobfile.planner import Planner
from watcher.jobs import JobRequest, JobState
from watcher.models.cards import limits_known
from watcher.pace import RunWindow
from watcher.store import JobStore

HOUSE = Path(__file__).parents[2]
SOURCES = sorted([*HOUSE.glob("watcher/**/*.py"), *HOUSE.glob("api/**/*.py")])


def readme() -> str:
    return (HOUSE / "README.md").read_text(encoding="utf-8")


def architecture() -> str:
    return (HOUSE / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_floors_are_drawn_as_they_are_kept() -> None:
    tools = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    [kept] = [c["layers"] for c in tools["importlinter"]["contracts"] if c["type"] == "layers"]
    [drawn] = re.findall(r"```\n(__main__\n.*?)```", architecture(), re.DOTALL)
    assert drawn.splitlines() == kept


def test_the_transitions_are_drawn_as_they_are() -> None:
    drawn = re.findall(r"^(\w+) +--(\w+)--> +(\w+)", architecture(), re.MULTILINE)
    assert len(drawn) == len(TRANSITIONS)
    assert {(JobState(a), JobState(b)): verb for a, verb, b in drawn} == TRANSITIONS


def test_the_readme_maps_every_module_of_the_watcher() -> None:
    told = readme() + (HOUSE / "watcher" / "__init__.py").read_text(encoding="utf-8")
    modules = [path.name for path in HOUSE.glob("watcher/*.py") if not path.name.startswith("__")]
    parts = [f"{path.parent.name}/" for path in HOUSE.glob("watcher/*/__init__.py")]
    assert {"jobs.py", "inbox/"} <= {*modules, *parts}
    assert [name for name in (*modules, *parts) if name not in told] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_made_from_the_code_is_current(name: str) -> None:
    text = (HOUSE / name).read_text(encoding="utf-8")
    assert text == WRITTEN[name](), "make written"


def test_config_yaml_is_the_settings_with_their_defaults() -> None:
    text = config_text()
    assert yaml.safe_load(text) is None
    switched_on = re.sub(r"^# (?=[a-z_]+: )", "", text, flags=re.MULTILINE)
    assert Config(**yaml.safe_load(switched_on)) == Config()
    assert set(HEADINGS) <= Config.settings().keys()


def test_config_yaml_switched_on_is_accepted_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Config.settings():
        monkeypatch.delenv(f"STEADY_{name.upper()}", raising=False)
    switched_on = re.sub(r"^# (?=[a-z_]+: )", "", config_text(), flags=re.MULTILINE)
    (tmp_path / "config.yaml").write_text(switched_on, encoding="utf-8")
    assert Config.load(tmp_path).port == 8000


def test_the_address_in_links_is_what_people_can_reach() -> None:
    assert Config(host="::1", port=8000).address == "http://[::1]:8000"
    assert Config(public_url="https://pictures.example/").address == "https://pictures.example"


def test_every_example_in_config_yaml_is_accepted() -> None:
    words = "\n".join(setting.description or "" for setting in Config.settings().values())
    examples = re.findall(r"`(\w+): ([^`]+)`", words.replace("whsec_…", f"whsec_{'A' * 32}"))
    settings = [f"{name}: {value}" for name, value in examples if name in Config.model_fields]
    assert len(settings) == 10
    for setting in settings:
        chosen = Config(**yaml.safe_load(setting))
        assert chosen != Config(), setting
        RunWindow.parse(chosen.run_window)


@pytest.mark.parametrize(
    ("example", "jobs"),
    [
        ("sunset.yaml", 1),
        ("list.yaml", 4),
        ("matrix.yaml", 12),
        ("loras.yaml", 6),
        ("prompts.csv", 3),
        ("prompts.jsonl", 2),
    ],
)
def test_every_example_is_read_as_it_says(example: str, jobs: int) -> None:
    file = HOUSE / "examples" / example
    limits = limits_known(Config.load(HOUSE, model="starter"), None)
    parsed = parse(file.read_bytes(), file.suffix, Planner(limits), stem=file.stem)
    assert len(parsed.requests) == jobs
    assert not parsed.refused and not parsed.warnings


def test_the_crontab_escapes_its_percent_signs() -> None:
    text = (HOUSE / "examples" / "nightly.crontab").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and line[0] in "*0123456789"]
    assert len(lines) == 3
    assert not [line for line in lines if re.search(r"(?<!\\)%", line)]
    assert all(re.match(r"([\d*/,-]+ +){5}\S", line) for line in lines)


def test_every_error_is_raised_somewhere_and_every_raised_error_is_registered() -> None:
    said: set[str] = set()
    for path in SOURCES:
        if path.name != "errors.py" or path.parent.name == "api":
            said |= set(re.findall(r'"([a-z_0-9]+)"', path.read_text(encoding="utf-8")))
    assert sorted(set(ERRORS) - said) == []
    raised = {
        code
        for path in SOURCES
        for code in re.findall(r'SteadyError\(\s*"(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert sorted(raised - set(ERRORS)) == []


def test_every_error_says_what_happened_and_what_to_do() -> None:
    for code, kind in ERRORS.items():
        assert kind.what.endswith(".") and kind.do.endswith((".", ").")), code
        assert kind.exit in (1, 2, 3, 4, 5), code
        assert 400 <= kind.status < 600, code


def test_every_field_of_a_job_is_an_option_of_submit() -> None:
    import inspect

    from watcher.commands.fields import with_fields
    from watcher.commands.submit import submit

    options = {name.rstrip("_") for name in inspect.signature(with_fields(submit)).parameters}
    assert set(JobRequest.model_fields) - {"prompt"} <= options


@pytest.mark.parametrize(
    ("module", "never"),
    [
        (
            "watcher.cli",
            {"torch", "diffusers", "dataset", "sqlalchemy", "fastapi", "watchdog", "rich"},
        ),
        ("api.app", {"torch", "diffusers", "transformers"}),
        ("watcher.service", {"torch", "diffusers", "transformers", "fastapi"}),
        ("watcher.engine", {"torch", "diffusers"}),
    ],
)
def test_what_a_module_brings_along(module: str, never: set[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert never & set(found.stdout.split()) == set()


def test_help_brings_nothing_heavy_along() -> None:
    """What makes `steady --help` quick is what it does not import."""
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import atexit, sys\n"
            "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
            "from watcher.cli import main\nmain(['--help'])",
        ],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "submit" in found.stdout
    heavy = {"torch", "dataset", "sqlalchemy", "fastapi", "watchdog", "rich", "pydantic"}
    assert heavy & set(found.stderr.split()) == set()


@pytest.mark.parametrize("words", [["list"], ["status"], ["submit", "a fox"]])
def test_what_looks_and_what_submits_brings_little_along(tmp_path: Path, words: list[str]) -> None:
    """With a record: most of a short command's time is what it imports."""
    config = Config.load(tmp_path, model="starter")
    config.state.mkdir(parents=True)
    JobStore(config.database_url).close()
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import atexit, sys\n"
            "atexit.register(lambda: print('IMPORTED', *sys.modules, file=sys.stderr))\n"
            "from watcher.cli import main\nmain()",
            *("--root", str(tmp_path), *words),
        ],
        cwd=HOUSE,
        env=os.environ | {"STEADY_MODEL": "starter"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == (4 if words == ["status"] else 0), found.stderr
    imported = set(found.stderr.partition("IMPORTED")[2].split())
    assert "watcher.store" in imported
    heavy = {"torch", "dataset", "sqlalchemy", "alembic", "fastapi", "watchdog", "rich", "PIL"}
    assert heavy & imported == set()


def test_imports_only_go_down() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_make_help_lists_every_target() -> None:
    text = (HOUSE / "Makefile").read_text(encoding="utf-8")
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    helped = re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE)
    assert sorted(phony.split()) == sorted(helped)


def test_constraints_pin_everything_once() -> None:
    lines = [
        line
        for line in (HOUSE / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    pins = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(pins), "a name, two equals signs, a version without a local part"
    names = [re.sub(r"[-_.]+", "-", pin[1]).lower() for pin in pins if pin]
    assert len(names) == len(set(names))
    wanted = re.findall(
        r'^    "([\w-]+)[>=~]?',
        (HOUSE / "pyproject.toml").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    packages = {"fastapi", "torch", "diffusers", "typer", "pytest", "ruff", "types-pyyaml"}
    assert packages <= {name.lower() for name in wanted}
    assert packages <= set(names)


def test_no_source_file_is_without_a_docstring() -> None:
    import ast

    bare = [
        str(path.relative_to(HOUSE))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert bare == []


def test_a_function_or_class_has_its_name_for_itself() -> None:
    """One name, one meaning, in the whole tree. Modules of routes and programs are alike."""
    import ast

    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(HOUSE)))
    alike = {"routes", "main", "__getattr__"}
    assert {n: at for n, at in homes.items() if len(at) > 1 and n not in alike} == {}


def test_no_coroutine_reads_a_body_as_json_itself() -> None:
    found = [
        f"{path.name}: {call.lineno}"
        for path in HOUSE.glob("api/**/*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.AsyncFunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("json_object", "read_json")
    ]
    assert found == [], "all other requests wait for it: read_object has a thread do it"


def test_every_command_comes_from_the_module_that_the_command_line_names() -> None:
    """A command is found whether its module alone is imported or all are."""
    listed = "from watcher import cli\nfrom watcher.commands.desk import app\n"
    listed += "told = {}\nfor module in cli.COMMANDS:\n"
    listed += "    before = {g.name for g in app.registered_commands + app.registered_groups}\n"
    listed += "    __import__(f'watcher.commands.{module}')\n"
    listed += "    after = {g.name for g in app.registered_commands + app.registered_groups}\n"
    listed += "    told[module] = after - before\n"
    listed += "print(told == cli.COMMANDS, told)"
    found = subprocess.run(
        [sys.executable, "-c", listed], cwd=HOUSE, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("True"), found.stdout
