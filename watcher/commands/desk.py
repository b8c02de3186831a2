"""What every command is given: the root, the settings, the record, and two ways to speak.

People's text goes to stderr when it is talk and to stdout when it is the answer, always with
control characters written out. With ``--json`` stdout carries one JSON object a line and
nothing else. Knows nothing of what the commands do.
"""

import contextlib
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from watcher.errors import ERRORS, SteadyError, ValueFault
from watcher.log import harmless

if TYPE_CHECKING:
    from watcher.config import Config
    from watcher.store import JobStore

_Function = TypeVar("_Function", bound=Callable[..., Any])

INTERRUPTED = 130  #: exit code after Ctrl-C
_COLOURS = {"completed": 32, "generating": 36, "failed": 31, "bad": 31, "cancelled": 2, "head": 1}
_COLOUR = re.compile(r"(\x1b\[(?:0|1|2|31|32|36)m)")
_MOST_FAULTS = 20  #: of a file that are listed

Root = Annotated[
    Path | None,
    typer.Option("--root", help="The service's folder [default: $STEADY_ROOT or this one]."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while all is well.")]


class Desk:
    """One call of `steady`: where it works and how it speaks."""

    def __init__(self, root: Path, *, as_json: bool = False, quiet: bool = False) -> None:
        self.root = root.resolve() if ".." in root.parts else root.absolute()
        self.as_json = as_json
        self.quiet = quiet
        self.overrides: dict[str, Any] = {}  #: settings that options of the command replace

    @cached_property
    def config(self) -> "Config":
        """The settings of the root. Raises SteadyError ``bad_config`` or ``folder_gone``."""
        from watcher.config import Config

        if not self.root.is_dir():
            raise SteadyError(
                "folder_gone",
                f"There is no folder {self.root}.",
                remedy=f"Make one: steady --root {self.root} init",
            )
        return Config.load(self.root, **self.overrides)

    def has_record(self) -> bool:
        """Has a watcher ever run here? Asking must not create a record.

        Raises SteadyError ``folder_gone`` for a folder that is not the service's at all.
        """
        config, path = self.config, self.config.database_path
        if path is None or path.exists():
            return True
        if not any(p.exists() for p in (self.root / "config.yaml", config.inbox, config.state)):
            raise SteadyError(
                "folder_gone",
                f"{self.root} is no folder of the service: it has no config.yaml and no inbox.",
                remedy="Name the service's folder with --root, or make this one:"
                f" steady --root {self.root} init",
            )
        return False

    @contextlib.contextmanager
    def record(self) -> Iterator["JobStore"]:
        """The record, opened for this command.

        Raises SteadyError ``database_trouble``, and as :meth:`has_record` does.
        """
        from watcher.store import JobStore

        self.has_record()
        config = self.config
        store = JobStore(config.database_url, synchronous=config.synchronous, checkpointer=False)
        try:
            yield store
        finally:
            store.close()

    @contextlib.contextmanager
    def record_if_any(self) -> Iterator["JobStore | None"]:
        """The same; None where no watcher has ever run."""
        if not self.has_record():
            yield None
            return
        with self.record() as store:
            yield store

    def pulse(self) -> dict[str, Any]:
        """How the watcher is, wherever it runs; what it said last, with ``alive``."""
        from watcher import live

        if self.config.database_path is not None:
            return live.read_pulse(self.config.state)
        try:
            with self.record() as store:
                return live.seen(store)
        except SteadyError:
            return {"alive": False}

    # -- speaking

    def answer(self, data: dict[str, Any], text: str, *, always: bool = False) -> None:
        """What was asked for: a JSON object, or text for people (when quiet only ``always``)."""
        if self.as_json:
            print(json.dumps(data, default=str), flush=True)
        elif always or not self.quiet:
            print(self._shown(text), flush=True)

    def talk(self, text: str) -> None:
        """Talk beside the answer: for people only, on stderr."""
        if not self.quiet and not self.as_json:
            print(self._shown(text), file=sys.stderr, flush=True)

    @cached_property
    def colour(self) -> bool:
        """Does a person look on, who did not ask for plain text (https://no-color.org)?"""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return sys.stdout.isatty() and sys.stderr.isatty() and not plain

    def tint(self, text: str, kind: str) -> str:
        """``text`` in the colour of a state, or of a ``head`` or ``bad`` line, on a terminal."""
        code = _COLOURS.get(str(kind))
        return f"\x1b[{code}m{text}\x1b[0m" if code and self.colour else text

    def _shown(self, text: str) -> str:
        """``text`` for a terminal, with nothing that steers it but our own colours."""
        pieces = _COLOUR.split(text) if self.colour else [text]  # every second is a colour
        return "".join(p if n % 2 else harmless_lines(p) for n, p in enumerate(pieces))

    def tell_if_unready(self) -> None:
        """Say so when what waits cannot be made yet: no watcher, no model, or one that loads."""
        from watcher import live

        pulse = self.pulse()
        if not pulse["alive"]:
            self.talk(f"No watcher runs here yet; to start one: steady --root {self.root} serve")
        elif (stands := live.standing(pulse)) != live.READY:
            self.talk(stands)

    def complain(self, error: SteadyError) -> None:
        """What went wrong and what to do; said also when quiet."""
        if self.as_json:
            print(json.dumps({"error": error.as_dict()}, default=str), flush=True)
        else:
            print(harmless_lines(error_text(error)), file=sys.stderr, flush=True)


def harmless_lines(text: str) -> str:
    """``text`` for a terminal: its line breaks stay, every other control character is shown."""
    return "\n".join(harmless(line) for line in text.split("\n"))


def fitted_line(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` characters, control characters shown."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def error_text(error: SteadyError) -> str:
    """An error for people: what happened, each single fault with its place, what to do; once."""
    faults = [fitted_line(_fault(problem), 1000) for problem in error.problems[:_MOST_FAULTS]]
    if not faults or error.problems[0].message not in error.message:
        faults.insert(0, fitted_line(error.message, 500))
    lines = [f"steady: {faults[0]}", *(f"  {fault}" for fault in faults[1:])]
    if len(error.problems) > _MOST_FAULTS:
        lines.append(f"  and {len(error.problems) - _MOST_FAULTS} more")
    told = [p.remedy or (error.kind.do if p.allowed else None) for p in error.problems]
    if error.remedy not in told and error.remedy != ERRORS["bad_request"].do:  # that is for HTTP
        lines.append("  " + fitted_line(error.remedy, 500))
    return "\n".join(lines)


def _fault(problem: ValueFault) -> str:
    places = [
        problem.file,
        f"row {problem.row}" if problem.row else None,
        f"document {problem.document}" if problem.document else None,
        f"line {problem.line}" if problem.line and problem.file else None,
        f"`{problem.key}`" if problem.key and f"`{problem.key}`" not in problem.message else None,
    ]
    where = ", ".join(place for place in places if place)
    words = [f"{where}: {problem.message}" if where else problem.message]
    if problem.value is not None:
        words.append(f"Given: {problem.value}.")
    if problem.allowed and problem.allowed not in problem.message:
        words.append(f"Allowed: {problem.allowed}.")
    return " ".join([*words, problem.remedy or ""])


class DeferredCommand(TyperCommand):
    """A line in the list of commands. Its options are made when it is called.

    To make those of every command takes longer than most commands run.
    """

    def make_context(self, *args: Any, **named: Any) -> Any:
        """Make the whole command, and let that one read its words."""
        if self.callback is None:
            raise RuntimeError("a deferred command is made from a function")
        return self.callback().make_context(*args, **named)


app = typer.Typer(
    name="steady",
    help="Drop a prompt file in a folder, get pictures, lose nothing, make nothing twice.",
    no_args_is_help=True,
    rich_markup_mode=None,  # prompts are text, never markup; and help comes faster
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command_group(name: str, words: str) -> typer.Typer:
    """A group of commands, ``steady NAME …``; ``words`` are its help."""
    group = typer.Typer(help=words, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name)
    return group


def command(
    name: str | None = None,
    *,
    into: typer.Typer = app,
    options: Callable[[Callable[..., int]], Callable[..., int]] | None = None,
) -> Callable[[_Function], _Function]:
    """Make a function a command of ``into``; ``options`` decorates it when it is called.

    The function's first parameter ``desk`` is filled in; its others are the command's own.
    ``--root``, ``--json`` and ``-q`` are added (they may also stand before the command).
    It returns the exit code, None being 0; a SteadyError ends it with the code's exit code
    from the registry, Ctrl-C with 130. Itself it stays as it is.
    """

    def added(function: _Function) -> _Function:
        own_name = name or function.__name__

        def whole() -> Any:
            alone = typer.Typer(
                add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
            )
            alone.command(own_name)(_with_desk(options(function) if options else function))
            return typer.main.get_command(alone)

        into.command(own_name, cls=DeferredCommand, help=inspect.getdoc(function))(whole)
        return function

    return added


def _with_desk(function: Callable[..., int | None]) -> Callable[..., None]:
    own = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def run(**given: Any) -> None:
        context: typer.Context = given.pop("context")
        desk = _desk(context, given.pop("root"), given.pop("as_json"), given.pop("quiet"))
        raise typer.Exit(_run_guarded(desk, functools.partial(function, desk, **given)))

    def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, kind, default=default, annotation=annotation)

    parameters = [p for p in own.parameters.values() if p.name != "desk"]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters),
            option("root", Root, None),
            option("as_json", Json, False),
            option("quiet", Quiet, False),
            option("context", typer.Context, inspect.Parameter.empty),
        ]
    )
    return run


def _desk(context: typer.Context, root: Path | None, as_json: bool, quiet: bool) -> Desk:
    """Options after the command win over those before it, and both over the environment."""
    before: dict[str, Any] = context.find_root().obj or {}
    folder = root or before.get("root") or Path(os.environ.get("STEADY_ROOT") or ".")
    return Desk(
        folder.expanduser(),
        as_json=as_json or before.get("as_json", False),
        quiet=quiet or before.get("quiet", False),
    )


def _run_guarded(desk: Desk, call: Callable[[], int | None]) -> int:
    try:
        return call() or 0
    except SteadyError as error:
        desk.complain(error)
        return error.kind.exit
    except KeyboardInterrupt:
        return INTERRUPTED
