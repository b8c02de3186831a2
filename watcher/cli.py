"""The command `steady`: its options, its list of commands, its exit codes.

Exit codes (from the registry in errors.py): 0 done, 1 the job failed or was cancelled, 2 bad
usage or a bad file (nothing queued), 3 no such job, 4 not ready or doctor found a fault,
5 --timeout passed, 130 Ctrl-C (the job goes on). What the commands do is in commands/.
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from watcher.commands.desk import Json, Quiet, Root, app
from watcher.program import installed_version

#: Objects made and not freed between two looks for cycles: what is imported stays, and looking at it
#: again and again is a twelfth of a short command's time.
_RARE_LOOK = 50_000

#: Module of commands/ -> what it adds, in the order in which `steady --help` lists it.
COMMANDS = {
    "services": {"serve", "watch", "api", "mcp", "open"},
    "submit": {"submit"},
    "ask": {"list", "status", "cancel", "retry", "pause", "resume"},
    "waiting": {"follow"},
    "batches": {"export", "prune"},
    "models": {"model", "lora"},
    "setup": {"init"},
    "doctor": {"doctor"},
}


class Commands(TyperGroup):
    """The commands, each imported when it is called, and all where none is.

    What all of them bring along takes a tenth of the time in which `steady list` answers.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the module of a command, or every module for a word that is none."""
        if cmd_name not in self.commands:
            named = [module for module, names in COMMANDS.items() if cmd_name in names]
            for module in named or COMMANDS:
                importlib.import_module(f"watcher.commands.{module}")
            self.commands = typer.main.get_group(app).commands
        return self.commands.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Import all, for `steady --help`."""
        self.get_command(ctx, "")
        return list(self.commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        where = Path(__file__).resolve().parent
        print(f"steadydiffusion {installed_version() or '(not installed)'} ({where})")
        raise typer.Exit


@app.callback(cls=Commands)
def _before(
    context: typer.Context,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    context.obj = {"root": root, "as_json": as_json, "quiet": quiet}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. ``arguments`` are those of the process when not given."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter shows its number; no prompt ends a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(_RARE_LOOK)
    # Else every distribution that is installed is asked whether it extends pydantic.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(args=words, prog_name="steady")
    except BrokenPipeError:  # `steady list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
