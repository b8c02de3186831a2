"""doctor: one line for each thing that must be right, and the command that mends it.

Looks only. (Whether file events come is tried with a file of its own under a hidden name in the
inbox, when no watcher runs.) A check that cannot be made is a fault of its own. torch is asked
in a child process; this one never loads it.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict

from watcher.commands.desk import Desk, command
from watcher.commands.doctor import program, root, surroundings
from watcher.commands.doctor.look import FAIL, OK, Finding, Look, Machine
from watcher.errors import SteadyError

_FAULT = 4  #: exit code


@command()
def doctor(desk: Desk) -> int:
    """Look at everything that must be right; each FAIL names what mends it."""
    worst = 0
    for finding in findings(desk, Machine()):
        line = f"{finding.level.upper():<4}  {finding.check:<10} {finding.message}"
        if finding.mend:
            line += f"\n      {'':<10} -> {finding.mend}"
        if finding.level == FAIL:
            worst = _FAULT
        desk.answer(asdict(finding), line, always=finding.level == FAIL)
    return worst


def findings(desk: Desk, machine: Machine) -> Iterator[Finding]:
    """Every check in turn; without usable settings only those that need none."""
    yield from _check_guarded("python", program.interpreter())
    yield from _check_guarded("package", program.package())
    try:
        config = desk.config
    except SteadyError as error:
        yield Finding("config", FAIL, error.message, error.remedy)
        return
    file = config.root / "config.yaml"
    words = f"{file} and the environment" if file.exists() else "the environment; no config.yaml"
    yield Finding("config", OK, words)
    look = Look(desk, machine)
    for name, check in _CHECKS.items():
        yield from _check_guarded(name, check(look))


def _check_guarded(name: str, found: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of one check; what stops it is a finding as well."""
    try:
        yield from found
    except SteadyError as error:
        yield Finding(name, FAIL, error.message, error.remedy)
    except OSError as error:
        mend = "see that the service's user may read its folder"
        yield Finding(name, FAIL, f"cannot be looked at: {error.strerror or error}", mend)


#: In the order in which they are told.
_CHECKS: dict[str, Callable[[Look], Iterator[Finding]]] = {
    "torch": program.torch,
    "device": program.device,
    "memory": program.memory,
    "model": program.weights,
    "layout": root.layout,
    "inbox": root.inbox,
    "outputs": root.outputs,
    "presets": root.presets,
    "disks": root.disks,
    "record": root.record,
    "watcher": root.watcher,
    "events": root.events,
    "inotify": surroundings.inotify,
    "disk": surroundings.disk,
    "clock": surroundings.clock,
    "port": surroundings.port,
    "exposure": surroundings.exposure,
    "extras": surroundings.extras,
}
