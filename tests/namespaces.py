"""A user namespace of its own, for tests that lower a limit of the system: nobody else feels it."""

import os
import subprocess

import pytest


def lowered(limit: str) -> tuple[str, ...]:
    """What a command begins with to run where ``limit`` (of /proc/sys/user) is 0.

    Where namespaces are forbidden (a chroot, a system's setting) the test is skipped, or fails if
    NEED_NAMESPACES is set.
    """
    begin = ("unshare", "--user", "--map-root-user", "sh", "-c")
    if subprocess.run([*begin, "true"], check=False).returncode != 0:
        why = "user namespaces are forbidden here"
        if "NEED_NAMESPACES" in os.environ:
            pytest.fail(why)
        pytest.skip(why)
    return (*begin, f'echo 0 > /proc/sys/user/{limit}; exec "$@"', "sh")
