"""What Ray reads from the environment when it is imported; to be settled before that.

Leaves ``ray_token`` in the state folder: the password of a cluster of our own, new at every
start. Does not import Ray.
"""

import os
import secrets
from pathlib import Path

from watcher.errors import SteadyError

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def settle(address: str, state: Path) -> None:
    """Switch Ray's own password on and its reports off, and keep one machine to itself.

    Raises SteadyError ``bad_config`` when a cluster is to be joined and no token is given.
    """
    os.environ["RAY_AUTH_MODE"] = "token"  # whoever reaches an open Ray port may run anything
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if address == "local":
        # Or a cluster for one machine would listen on all its addresses.
        os.environ[_LOOPBACK] = "0"
        path = state / "ray_token"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path.absolute())
    elif not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        raise SteadyError(
            "bad_config",
            f"The Ray cluster at `{address}` is joined with its token.",
            remedy="Put it into a file and set RAY_AUTH_TOKEN_PATH to that, here as on every node.",
        )
