"""May a service live in this root? Refused are roots in which its parts would eat each other.

Looks only; knows nothing of what the parts do.
"""

from pathlib import Path

from watcher.config import Config
from watcher.errors import SteadyError


def check_layout(config: Config) -> None:
    """Refuse a root in which the parts would eat each other. Raises SteadyError bad_config."""
    inbox, outputs = config.inbox.resolve(), config.outputs.resolve()
    if inbox == outputs or inbox in outputs.parents or outputs in inbox.parents:
        raise SteadyError("bad_config", "`inbox` and `outputs` must not lie inside each other.")
    for what, path in (("database", config.database_path), (".steady", config.state)):
        kind = path and network_file_system(path)
        if kind:
            raise SteadyError(
                "bad_config",
                f"`{what}` lies on a network file system ({kind}), where locks cannot be trusted.",
                remedy="Keep the root on a local disk; inbox and outputs may be elsewhere.",
            )


_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph", "afs"}


def network_file_system(path: Path) -> str | None:
    """The type of the network file system ``path`` lies on, or None (also where unknown)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    best, kind = "", None
    target = str(path.absolute())
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind if kind in _NETWORK else None
