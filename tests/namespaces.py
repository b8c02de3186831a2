"""A user namespace of its own, for tests that lower a limit of the system: nobody else feels it."""

import os
import subprocess

import pytest


def lowered(limit: str) -> list[str]:
    """What a command begins with to run where ``limit`` (of /proc/sys/user) is 0.

    Skips the test where namespaces are forbidden (a chroot, a system's setting); where nothing
    may be skipped, it fails.
    """
    begin = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*begin, "true"], check=False).returncode != 0:
        why = "user namespaces are forbidden here"
        if "NOTHING_SKIPPED" in os.environ:
            pytest.fail(why)
        pytest.skip(why)
    return [*begin, f'echo 0 > /proc/sys/user/{limit}; exec "$@"', "sh"]
