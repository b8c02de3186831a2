"""deploy/ holds what it promises: linted where the tools are, read strictly everywhere."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HOUSE = Path(__file__).parents[2]
DEPLOY = HOUSE / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
PROGRAM = "/srv/steady/.venv/bin/steady"
RAY = "/srv/steady/.venv/bin/ray start"
ON_RAY = [unit for unit in SERVICES if RAY in unit.read_text()]


def unit_of(path: Path) -> dict[str, list[str]]:
    lines = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
    return {key: [v for k, v in lines if k == key] for key, _ in lines}


def instructions(text: str) -> list[tuple[str, str]]:
    """``(COPY, "a b")`` … of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [
        (i, rest) for i, _, rest in (line.partition(" ") for line in whole.splitlines() if line)
    ]


def steady(*words: str) -> None:
    """Would `steady` understand these words? Asked by --help, which runs nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "watcher.cli", *words, "--help"],
        cwd=HOUSE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stderr)


# -- the container


def test_the_image_runs_as_nobody_special_and_says_how_it_is() -> None:
    steps = instructions((DEPLOY / "Dockerfile").read_text())
    last = steps[max(n for n, (i, _) in enumerate(steps) if i == "FROM") :]
    told = dict(last)
    assert told["USER"] == "${UID}:${GID}" and ("ARG", "UID=1000") in last
    assert {"HEALTHCHECK", "VOLUME", "STOPSIGNAL", "EXPOSE"} <= told.keys()
    assert json.loads(told["VOLUME"]) == ["/srv/steady", "/srv/models"]
    assert ("ARG", "TORCH=cpu") in steps, "the CUDA build is chosen by --build-arg TORCH="
    for image in [rest for i, rest in steps if i == "FROM"]:
        assert re.match(r"python:\$\{PYTHON\}-(slim-)?bookworm\b", image), "a pinned base"


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    copied = [
        word
        for i, rest in instructions((DEPLOY / "Dockerfile").read_text())
        if i == "COPY" and not rest.startswith("--from")
        for word in rest.split()[:-1]
    ]
    assert {"watcher", "api", "starter/model", "constraints.txt"} <= set(copied)
    assert [word for word in copied if not (HOUSE / word).exists()] == []
    first, *lines = [
        line
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert first == "*", "nothing but what is named: inbox/ and outputs/ are people's own"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied)


def test_the_commands_of_the_image_exist() -> None:
    told = dict(instructions((DEPLOY / "Dockerfile").read_text()))
    assert json.loads(told["ENTRYPOINT"]) == ["steady"]
    command = json.loads(told["CMD"])
    assert command == ["serve", "--host", "0.0.0.0"]
    steady("serve")
    health = json.loads(told["HEALTHCHECK"].partition("CMD ")[2])
    assert health == ["steady", "-q", "status"]
    assert "STEADY_TOKEN=auto" in told["ENV"], "0.0.0.0 is refused without a token"


@pytest.mark.skipif(
    not shutil.which("hadolint", path=str(Path(sys.executable).parent)), reason="no hadolint"
)
def test_the_dockerfile_is_linted() -> None:
    hadolint = str(Path(sys.executable).parent / "hadolint")
    done = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_keeps_the_service_to_this_machine() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose) == {"services", "volumes"}
    service = compose["services"]["steady"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    places = [volume.rpartition(":")[::2] for volume in service["volumes"]]
    named = {source for source, _ in places if "/" not in source}
    assert named == set(compose["volumes"])
    folders = {target: source for source, target in places}
    assert (DEPLOY / folders["/srv/steady/inbox"]).resolve() == HOUSE / "inbox"
    assert (DEPLOY / folders["/srv/steady/outputs"]).resolve() == HOUSE / "outputs"
    gpu = compose["services"]["steady-gpu"]
    assert gpu["extends"] == {"service": "steady"} and gpu["profiles"] == ["gpu"]


# -- systemd


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_every_service_is_fenced_in(unit: Path) -> None:
    told = unit_of(unit)
    for key, value in {
        "User": "steady", "Group": "steady", "UMask": "0002", "NoNewPrivileges": "yes",
        "ProtectSystem": "strict", "ReadWritePaths": "/srv/steady", "ProtectHome": "yes",
        "PrivateTmp": "yes", "CapabilityBoundingSet": "",
    }.items():  # fmt: skip
        assert told[key] == [value], key
    makes_pictures = "watch" in told["ExecStart"][0].split() or unit in ON_RAY
    assert told["PrivateDevices"] == ["no" if makes_pictures else "yes"]


@pytest.mark.parametrize(
    "unit", [unit for unit in SERVICES if unit not in ON_RAY], ids=lambda unit: unit.stem
)
def test_every_service_runs_a_command_that_exists(unit: Path) -> None:
    [line] = unit_of(unit)["ExecStart"]
    words = line[line.index(PROGRAM) :].removeprefix(PROGRAM).split()
    assert words[:2] == ["--root", "/srv/steady"]
    options = [word for word in words[3:] if word.startswith("-")]
    done = subprocess.run(
        [sys.executable, "-m", "watcher.cli", words[2], "--help"],
        cwd=HOUSE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [option for option in options if option not in done.stdout] == []


def test_rays_services_use_options_that_exist_and_ask_for_the_token() -> None:
    from click.testing import CliRunner
    from ray.scripts.scripts import start

    known = CliRunner().invoke(start, ["--help"]).output
    assert len(ON_RAY) == 2
    for unit in ON_RAY:
        told = unit_of(unit)
        options = [word for word in told["ExecStart"][0].split() if word.startswith("--")]
        assert [option for option in options if option not in known] == []
        assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(told["Environment"])
        assert told["Restart"] == ["always"], "a node that was cut off does not come back by itself"


def test_every_timer_has_its_service() -> None:
    timers = [unit for unit in UNITS if unit.suffix == ".timer"]
    assert len(timers) == 2
    for timer in timers:
        told = unit_of(timer)
        assert timer.with_suffix(".service").exists()
        assert told["OnCalendar"] and told["Persistent"] == ["true"]
        assert told["WantedBy"] == ["timers.target"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_accepts_the_units_and_finds_them_closed(tmp_path: Path) -> None:
    for unit in UNITS:
        # verify wants the program and the folder to be there
        text = (
            unit.read_text()
            .replace(PROGRAM, "/bin/true")
            .replace(RAY, "/bin/true")
            .replace("/srv/steady", "/srv")
        )
        (tmp_path / unit.name).write_text(text)
    files = [str(tmp_path / unit.name) for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    for unit in SERVICES:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--threshold=35", str(unit)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{unit.name}: {done.stdout[-200:]}"
