"""A Ray cluster of real processes on this machine, and machines of their own to put nodes on.

``Cluster`` is a head and nodes that come and go; ``Machine`` is a network namespace with a
cable to ours that can be pulled. Both need no more than loopback. Everything ends with
``close``, whatever the test did to it.
"""

import atexit
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from conftest import until

TESTS = Path(__file__).parent
#: Small, and nothing that asks or tells anybody outside.
_START = ["--block", "--object-store-memory=100000000", "--disable-usage-stats"]


class Machine:
    """A network namespace, with the far end of a cable whose near end is in ours.

    ``hide``: a folder that is empty as seen from there, as on another machine's disk.
    ``route``: an address of ours that can be reached from there.
    """

    _made = 0

    def __init__(self, *, hide: Path | None = None, route: str | None = None) -> None:
        Machine._made += 1
        number = f"{os.getpid() % 10000}n{Machine._made}"
        self.near, far = f"near{number}", f"far{number}"
        self.here, self.address = f"10.77.{Machine._made}.1", f"10.77.{Machine._made}.2"
        cover = f"mount -t tmpfs none '{hide}' && " if hide else ""
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", f"{cover}echo; exec sleep 3600"],
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as ready:
            assert ready.read(1) == b"\n", "no namespaces here: be root, or `unshare -r`"
        link(f"link add {self.near} type veth peer name {far} netns {self._keeper.pid}")
        link(f"link set {self.near} addrgenmode none")
        link(f"addr add {self.here}/24 dev {self.near}")
        self.plug()
        for command in (
            "link set lo up",
            f"link set {far} addrgenmode none",
            f"addr add {self.address}/24 dev {far}",
            f"link set {far} up",
            *([f"route add {route} via {self.here}"] if route else []),
        ):
            self.run("ip", *command.split())

    @property
    def wrapper(self) -> list[str]:
        """What runs a command over there."""
        return ["nsenter", "-t", str(self._keeper.pid), "--net", "--mount"]

    def run(self, *command: str) -> str:
        """What this command prints over there."""
        whole = [*self.wrapper, *command]
        return subprocess.run(whole, check=True, capture_output=True, text=True).stdout

    def owns(self, pid: int) -> bool:
        return _network(pid) == _network(self._keeper.pid)

    def processes(self) -> list[int]:
        """Everything that runs there, but the one that keeps it."""
        return [p for p in psutil.pids() if p != self._keeper.pid and self.owns(p)]

    def said(self) -> int:
        """Packets that came out of its cable."""
        told = subprocess.run(
            ["ip", "-j", "-s", "link", "show", self.near], check=True, capture_output=True
        )
        return int(json.loads(told.stdout)[0]["stats64"]["rx"]["packets"])

    def listeners(self) -> set[str]:
        """Addresses that something listens on there."""
        lines = self.run("ss", "-Hltun").splitlines()
        return {line.split()[4].rpartition(":")[0] for line in lines}

    def pull(self) -> None:
        link(f"link set {self.near} down")

    def plug(self) -> None:
        link(f"link set {self.near} up")

    def close(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.CalledProcessError):
            link(f"link delete {self.near}")
        self._keeper.kill()
        self._keeper.wait()


def link(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _network(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return f"gone {pid}"


class Node:
    """What ``ray start`` started: one head or node, and its children."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], said: Path) -> None:
        with said.open("ab") as out:
            self._process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        self._family: list[psutil.Process] = []

    def look(self) -> list[psutil.Process]:
        """Its processes, the workers among them; also those that lost their parent since."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for found in psutil.Process(self._process.pid).children(recursive=True):
                if found not in self._family:
                    self._family.append(found)
        return [p for p in self._family if p.is_running()]

    def raylet(self) -> psutil.Process | None:
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    return process
        return None

    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self.look()
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        for process in [*self._family, *self._orphans()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()

    def _orphans(self) -> list[psutil.Process]:
        """Children of ours: what is below a process ends up with whoever is above it."""
        found = []
        for member in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += member.children(recursive=True)
        return found


class Cluster:
    """A head, and nodes; each has as many slots as ``cpus``.

    ``folder`` must have a short name: sockets lie in it. ``address`` is the head's.
    """

    def __init__(self, folder: Path, *, address: str = "127.0.0.1", cpus: int = 0) -> None:
        self._folder = folder
        self._said = folder / "ray.log"
        self.token = secrets.token_hex(16)
        self._cpus = cpus
        self.address = f"{address}:{_free_port(address)}"
        self.door = f"ray://{address}:{_free_port(address)}"  #: for who is no node of it
        self.nodes: list[Node] = []
        self.head = self.start_head()

    def start_head(self) -> Node:
        """At the address it always has."""
        address, _, port = self.address.partition(":")
        self.head = self._start("--head", f"--port={port}", f"--node-ip-address={address}",
            f"--num-cpus={self._cpus}", "--include-dashboard=false",
            f"--ray-client-server-port={self.door.rpartition(':')[2]}")  # fmt: skip
        return self.head

    @property
    def environment(self) -> dict[str, str]:
        """What whoever joins must know."""
        return {"RAY_AUTH_TOKEN": self.token}

    @property
    def settings(self) -> dict[str, Any]:
        """For config.yaml of a watcher that joins."""
        return {"executor": "ray", "ray_address": self.address, "device": "cpu"}

    def node(self, cpus: int = 1, machine: Machine | None = None) -> Node:
        """One more, up and known to the head."""
        ip = machine.address if machine else self.address.split(":")[0]
        return self._start(f"--address={self.address}", f"--node-ip-address={ip}",
            f"--num-cpus={cpus}", wrapper=machine.wrapper if machine else ())  # fmt: skip

    def _start(self, *options: str, wrapper: Sequence[str] = ()) -> Node:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("STEADY_", "RAY_"))}
        environment = kept | self.environment | {
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        }  # fmt: skip
        begun = self._words().count("Ray runtime started")
        temp = ["--temp-dir", str(self._folder / f"t{len(self.nodes)}")]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start"]
        wrapper = ["setpriv", "--pdeathsig", "TERM", *wrapper]  # it ends with us, however we do
        node = Node([*wrapper, *command, *_START, *options, *temp], environment, self._said)
        self.nodes.append(node)
        until(lambda: self._words().count("Ray runtime started") > begun or node.ended(), 90)
        assert not node.ended(), self._words()[-3000:]
        node.look()
        return node

    def _words(self) -> str:
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.close()
        self.nodes.clear()


@functools.cache
def shared() -> Cluster:
    """The cluster of this run, with one slot; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = Cluster(folder, cpus=1)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(cluster.close)
    return cluster


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """A cluster to play with: ``python tests/cluster.py FOLDER``."""
    cluster = Cluster(Path(sys.argv[1]))
    try:
        cluster.node()
        print(cluster.settings, cluster.environment)
        time.sleep(3600)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
