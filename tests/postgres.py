"""A PostgreSQL server of one's own for as long as a command runs: ``python postgres.py COMMAND…``.

The command finds its address in STEADY_DATABASE. The server lives in a temporary folder, listens
on a socket in there and nowhere else, and is gone afterwards. It needs Debian's package
`postgresql` (or any other installation on the PATH); as root it runs as the user `postgres`,
since PostgreSQL refuses to be root.

Tests ask ``fresh_record`` for an empty record on it.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NEW = ["-U", "steady", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
#: Nothing of a test's record must outlive the machine; ``--durable`` for figures.
CARELESS = ["-c", "fsync=off", "-c", "full_page_writes=off"]


def programs() -> Path:
    """The folder of ``initdb`` and ``postgres``, the newest there is."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not folders:
        sys.exit("PostgreSQL is not installed (Debian, Ubuntu: apt-get install postgresql).")
    return max(folders, key=lambda folder: float(folder.parent.name))


@contextlib.contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """A running server; the SQLAlchemy URL of its database."""
    home = programs()
    with tempfile.TemporaryDirectory(prefix="steady-pg-") as folder:
        who: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": folder}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = f"{folder}/data"
        subprocess.run(
            [home / "initdb", "-D", data, *_NEW], check=True, stdout=subprocess.DEVNULL, **who
        )
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
        options += ["-c", "max_connections=300", "-c", "log_min_messages=fatal"]
        options += [] if durable else CARELESS
        server = subprocess.Popen([home / "postgres", "-D", data, *options], **who)
        try:
            _wait_for(Path(folder) / ".s.PGSQL.5432", server)
            yield f"postgresql+psycopg://steady@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(30)


def _wait_for(socket: Path, server: "subprocess.Popen[bytes]") -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(
                f"postgresql://steady@/postgres?host={socket.parent}", connect_timeout=2
            ).close()
            return
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit("PostgreSQL did not start.")
        time.sleep(0.05)


@contextlib.contextmanager
def fresh_record(server: str) -> Iterator[str]:
    """An empty record on ``server``: the URL of a schema of its own, dropped afterwards."""
    import psycopg

    schema = f"t{uuid.uuid4().hex[:16]}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_class ON pg_class.oid = relation"
            " WHERE relnamespace = %s::regnamespace AND pid <> pg_backend_pid()", (schema,)
        )  # fmt: skip
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


def main() -> int:
    durable = sys.argv[1:2] == ["--durable"]
    command = sys.argv[2 if durable else 1 :]
    with cluster(durable=durable) as url:
        return subprocess.run(command, env=os.environ | {"STEADY_DATABASE": url}).returncode


if __name__ == "__main__":
    sys.exit(main())
