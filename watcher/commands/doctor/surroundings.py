"""Limits, disk, clock, the HTTP door, optional packages."""

import json
import shutil
import stat
import time
from collections.abc import Iterator

from watcher.commands.doctor.look import FAIL, OK, Finding, Look
from watcher.errors import SteadyError

_PICTURE_BYTES = 1_500_000  #: of a 1024 x 1024 PNG, until there are pictures to go by
_FEWEST = {"max_user_watches": 1024, "max_user_instances": 16}
_CLOCK_SLACK = 120.0  #: seconds the record may be ahead of the clock
_BUILT = 1_767_225_600.0  #: 1 January 2026: no clock of a machine that runs this is before it

#: Optional packages: what pip knows each by, and what it is good for.
_EXTRAS = {
    "ray": ("ray", "workers on other machines"),
    "psycopg": ("postgres", "the record on a server"),
    "bitsandbytes": ("quantize", "smaller weights"),
    "gguf": ("gguf", "transformers in .gguf files"),
    "spandrel": ("upscale", "the networks in upscalers/"),
    "apprise": ("notify", "notifications"),
    "pynvml": ("care", "how hot a card is"),
    "mcp": ("mcp", "tools for agents"),
}


def inotify(look: Look) -> Iterator[Finding]:
    """Are the system's limits high enough for the inbox to be watched?"""
    for limit, fewest in _FEWEST.items():
        # the system's limit, and that of this user's namespace
        for place in (f"fs/inotify/{limit}", f"user/{limit.replace('user', 'inotify')}"):
            try:
                number = int((look.machine.kernel / place).read_text())
            except (OSError, ValueError):
                continue  # another system than Linux
            if number < fewest:
                name = place.replace("/", ".")
                mend = f"sudo sysctl {name}={max(fewest, 65536)}"
                yield Finding("inotify", FAIL, f"{name} is only {number}", mend)
                return
    yield Finding("inotify", OK, "limits are high enough")


def disk(look: Look) -> Iterator[Finding]:
    """For how many more pictures is there room?"""
    folder, floor = look.config.outputs, look.config.min_free_disk
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    sizes = [job.bytes for job in look.newest if job.bytes]
    left = max(0, free - floor) // (sum(sizes) // len(sizes) if sizes else _PICTURE_BYTES)
    words = f"{free / 1e9:.1f} GB free, room for about {left:,} pictures"
    if free < floor:
        mend = "free some space (`steady prune --older-than 30d`), or lower `min_free_disk`"
        yield Finding("disk", FAIL, words, mend)
    else:
        yield Finding("disk", OK, words)


def clock(look: Look) -> Iterator[Finding]:
    """A clock that went back makes names and dates of new pictures older than the last ones."""
    from watcher.pace import span_words

    now = look.machine.now()
    newest = max([_BUILT, *(job.created_at / 1e6 for job in look.newest)])
    told = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    if now < newest - _CLOCK_SLACK:
        words = f"{told} is {span_words(newest - now)} before the newest job"
        yield Finding("clock", FAIL, words, "sudo timedatectl set-ntp true")
    else:
        yield Finding("clock", OK, f"{told} {time.tzname[time.localtime(now).tm_isdst > 0]}")


def port(look: Look) -> Iterator[Finding]:
    """Is the HTTP port free, or ours already?"""
    from watcher.commands.services import free_port

    host, port = look.config.host, look.config.port
    try:
        free_port(host, port)
    except SteadyError as error:
        if not _is_ours(host, port):
            mend = "set another `port`, or 0 for a free one"
            yield Finding("port", FAIL, error.message, mend)
            return
        yield Finding("port", OK, f"{port} answers")
    else:
        yield Finding(
            "port", OK, f"{port} is free" if port else "a free one is taken at each start"
        )


def _is_ours(host: str, port: int) -> bool:
    import urllib.request

    from watcher.commands.services import for_url

    try:
        with urllib.request.urlopen(f"http://{for_url(host)}:{port}/health", timeout=3) as answer:
            return "status" in json.load(answer)
    except (OSError, ValueError):
        return False


def exposure(look: Look) -> Iterator[Finding]:
    """Can strangers reach the service or read its token?"""
    config = look.config
    token = config.state / "token"
    if config.host not in ("127.0.0.1", "::1", "localhost") and not config.token:
        mend = "set `token: auto`, or `host: 127.0.0.1`"
        yield Finding("exposure", FAIL, f"{config.host} is open to others without a token", mend)
    elif token.exists() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        words = f"{token} can be read by other users"
        yield Finding("exposure", FAIL, words, f"chmod 600 {token}")
    else:
        who = "a token is needed" if config.token else "this machine only"
        yield Finding("exposure", OK, f"{config.host}: {who}")


def extras(look: Look) -> Iterator[Finding]:
    """Optional packages: a fault only where a setting asks for one that is absent."""
    config, cards = look.config, look.limits.cards
    asked = {
        "ray": config.executor == "ray",
        "psycopg": config.database_path is None,
        "bitsandbytes": any(card.options.get("quantize", "none") != "none" for card in cards),
        "gguf": any(piece.endswith(".gguf") for card in cards for piece in card.pieces),
        "spandrel": any(config.upscalers.glob("*.safetensors")),
        "apprise": bool(config.notify and config.notify.to),
        "pynvml": config.max_temperature is not None,
    }
    there = {name for name in _EXTRAS if look.machine.installed(name)}
    for name, (extra, use) in _EXTRAS.items():
        if asked.get(name) and name not in there:
            words = f"the settings need {name} ({use}), which is not installed"
            yield Finding("extras", FAIL, words, f"pip install 'steadydiffusion[{extra}]'")
            return
    told = [f"{name}{'' if name in there else ' (absent)'}" for name in _EXTRAS]
    yield Finding("extras", OK, "optional: " + ", ".join(told))
