"""The line to slots on the machines of a Ray cluster: one actor each.

Ray places the actors, starts them anew and carries bytes; which job runs where, and whether it
runs again, is decided by the watcher alone (slots.py). An actor asks for what one slot needs
(``resources``), so that further slots wait for machines that come later.

All of Ray lives in one thread, which also must be the one that starts a cluster of our own:
its processes end with that thread, however the watcher ends. Nothing else ever waits for Ray.

The only importer of Ray, itself imported only when the configuration asks for it, and after
environment.py has settled what Ray reads at its import.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from typing_extensions import override

from watcher.errors import SteadyError
from watcher.executor import Slot, WorkerSpec
from watcher.executor.local import BACKOFF
from watcher.executor.ray.actor import FarSlot, SlotReport
from watcher.executor.ray.slots import Line, Lost, Met, SlotTrouble, Tell
from watcher.wire import printable

_SILENCE = 30.0  #: an actor says something every second; Ray notices a cut link after 65
_LOOK = 5.0  #: seconds between looks at how many slots the cluster has room for
_PATIENCE = 10.0  #: seconds for a machine to come before that is called trouble
_VERDICT = 10.0  #: seconds in which an actor that died alone should be back
_STORE = 1 << 30  #: bytes of pictures on their way, in a cluster of our own

_Order = tuple[Any, ...]


class _Silent(Exception):
    """Nothing was heard of an actor for too long."""


class RayLine(Line):
    """Actors of a Ray cluster (see Line for the promises).

    Args:
        spec: what the workers load.
        address: ``local`` starts a cluster of our own on this machine, which ends with us;
            ``auto``, ``host:port`` and ``ray://…`` join one.
        state: folder that is linked to the files of a cluster of our own.
        slots: how many actors; None: as many as the cluster has room for.
        resources: what one slot takes of its machine, ``{"GPU": 1}``.
        limits: keyword arguments of the LocalExecutor behind each slot.
        silence: seconds after which an actor that says nothing counts as lost.
        actor: the class of the actors.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        address: str,
        state: Path,
        slots: int | None,
        resources: Mapping[str, float],
        limits: Mapping[str, Any],
        silence: float = _SILENCE,
        backoff: Sequence[float] = BACKOFF,
        actor: type[FarSlot] = FarSlot,
    ) -> None:
        self._spec = spec
        self._address = address
        self._state = state
        self._slots = slots
        self._resources = dict(resources)
        self._limits = dict(limits)
        self._silence = silence
        self._backoff = tuple(backoff)
        self._actor = actor
        self._environment = {"HOME": str(Path.home())} if address == "local" else {}  # see _home
        self.joining = False
        self._tell: Tell = _nobody
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._leaving = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._orders: dict[Slot, tuple[str, asyncio.Queue[_Order]]] = {}

    # -- for the main thread

    @override
    def start(self, tell: Tell) -> None:
        self._tell = tell
        self.joining = True
        self._thread.start()

    @override
    def order(self, slot: Slot, name: str, method: str, *arguments: Any) -> None:
        self._call(lambda: self._put(slot, name, (method, name, *arguments)))

    @override
    def stop(self) -> None:
        self._leaving.set()
        if self._end is not None:
            self._call(self._end.set)
        if self._thread.ident is not None:
            self._thread.join(20)

    def _call(self, do: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: it has left
                self._loop.call_soon_threadsafe(do)

    # -- the thread in which Ray lives

    def _live(self) -> None:
        """Take part in a cluster until told to leave; join again whenever the connection ends."""
        failures = 0
        while not self._leaving.is_set():
            self.joining = True
            try:
                with _cluster(self._address, self._state):
                    failures = 0
                    asyncio.run(self._serve())
            except (RayError, OSError, RuntimeError, ValueError) as error:
                words = f"Ray cannot be reached ({_first_line(error)})."
                self._tell(None, SlotTrouble(SteadyError("worker_unavailable", words)))
                self._leaving.wait(self._backoff[min(failures, len(self._backoff) - 1)] or 1.0)
                failures += 1

    async def _serve(self) -> None:
        """Keep every slot tended; add slots while the cluster grows."""
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        begun = time.monotonic()
        tended: list[asyncio.Task[None]] = []
        try:
            while not self._leaving.is_set():
                room = await asyncio.to_thread(self._room)
                for slot in range(len(tended), max(1, self._slots or room)):
                    tended.append(asyncio.create_task(self._tend(slot)))
                if not self._orders and time.monotonic() - begun > _PATIENCE:
                    self._tell(None, SlotTrouble(self._no_machine()))
                    begun = float("inf")
                ended = asyncio.create_task(self._end.wait())
                done, _ = await asyncio.wait(
                    {ended, *tended}, timeout=_LOOK, return_when="FIRST_COMPLETED"
                )
                ended.cancel()
                for task in done - {ended}:
                    task.result()
        finally:
            self._loop = None
            for slot, task in enumerate(tended):
                task.cancel()
                if not self._leaving.is_set():
                    self._tell(slot, Lost("the Ray cluster is gone"))

    def _room(self) -> int:
        """How many slots the machines of the cluster can carry.

        ConnectionError when this machine's own part of Ray has died: it does not come back.
        """
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        ours = ray.get_runtime_context().get_node_id()
        if not any(node["Alive"] and node["NodeID"] == ours for node in nodes):
            raise ConnectionError("the part of it on this machine has died")
        return sum(
            min(
                int(node["Resources"].get(name, 0) / need) for name, need in self._resources.items()
            )
            for node in nodes
            if node["Alive"]
        )

    def _no_machine(self) -> SteadyError:
        need = ", ".join(f"{name}: {amount:g}" for name, amount in self._resources.items())
        return SteadyError(
            "worker_unavailable",
            f"No machine of the Ray cluster has {need} free.",
            remedy="Add one, or set `ray_resources` to what one slot needs ({CPU: 2}).",
        )

    # -- one slot

    async def _tend(self, slot: Slot) -> None:
        """Keep an actor for this slot, a new one for each that is lost; returns when one has left as told."""
        actor = None
        failures = 0
        while True:
            begun = time.monotonic()
            met = None
            try:
                actor = actor or self._hire()
                met = Met(**await actor.hello.remote())  # waits for a machine, however long
                await self._attend(slot, actor, met)
                return
            except _Silent:
                self._tell(slot, Lost(f"silent for {self._silence:g} s"))
                _dismiss(actor)
                actor = None
            except RayError as error:
                await self._lose(slot, actor, met, error)
                if not isinstance(error, ActorUnavailableError):  # else Ray starts it anew
                    _dismiss(actor)
                    actor = None
            finally:
                self._orders.pop(slot, None)
            failures = 1 if time.monotonic() - begun > 60 else failures + 1
            await asyncio.sleep(self._backoff[min(failures - 1, len(self._backoff) - 1)] or 0.2)

    async def _lose(self, slot: Slot, actor: Any, met: Met | None, error: RayError) -> None:
        """Say what became of an actor.

        Ray says the same of a process that died and of a machine that did; but below the
        parent that it had, only the machine that lives starts it anew. One that still answers
        has lost its slot's thread to trouble of its machine, such as a full disk.
        """
        self._orders.pop(slot, None)
        if met is not None:
            again = await _again(actor)
            died = (
                again is not None
                and again.name != met.name
                and (again.host, again.parent) == (met.host, met.parent)
            )
            self._tell(slot, Lost("its process died" if died else _first_line(error), died))
        elif not isinstance(error, ActorUnavailableError):
            words = f"No slot can be started on the Ray cluster: {_first_line(error)}"
            self._tell(slot, SlotTrouble(SteadyError("worker_unavailable", words)))

    def _hire(self) -> Any:
        rest = {k: v for k, v in self._resources.items() if k not in ("CPU", "GPU")}
        made = ray.remote(self._actor).options(
            num_cpus=self._resources.get("CPU", 0),
            num_gpus=self._resources.get("GPU", 0),
            resources=rest,
            max_restarts=-1,
            max_task_retries=0,  # whether a job runs again is ours to decide
            max_concurrency=4,
        )
        return made.remote(self._spec, self._limits, self._environment)

    async def _attend(self, slot: Slot, actor: Any, met: Met) -> None:
        """Hear one actor and pass orders on, until it left. Raises RayError, _Silent."""
        self.joining = False
        orders: asyncio.Queue[_Order] = asyncio.Queue()
        self._orders[slot] = (met.name, orders)
        self._tell(slot, met)
        ears = asyncio.create_task(self._hear(slot, actor))
        hands = asyncio.create_task(_hand_on(orders, actor))
        try:
            done, _ = await asyncio.wait({ears, hands}, return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
        finally:
            ears.cancel()
            hands.cancel()

    async def _hear(self, slot: Slot, actor: Any) -> None:
        left = False
        while not left:
            call = asyncio.ensure_future(_reports_of(actor.hear.remote()))
            for _ in range(4):  # in quarters: time in which we ourselves stood still is none
                done, _ = await asyncio.wait({call}, timeout=self._silence / 4)
                if done:
                    break
            else:
                call.cancel()
                raise _Silent
            for report in call.result():
                self._tell(slot, report)
                left = report.left

    def _put(self, slot: Slot, name: str, order: _Order) -> None:
        known, orders = self._orders.get(slot, ("", None))
        if orders is not None and known == name:
            orders.put_nowait(order)


def _nobody(_slot: Slot | None, _news: object) -> None:
    """Drop the news: nothing was started yet."""


async def _hand_on(orders: asyncio.Queue[_Order], actor: Any) -> None:
    """Pass the orders on one at a time, so that they arrive in order."""
    while True:
        method, *arguments = await orders.get()
        await getattr(actor, method).remote(*arguments)


async def _reports_of(ref: Any) -> list[SlotReport]:
    answer: list[SlotReport] = await ref
    return answer


async def _again(actor: Any) -> Met | None:
    """The actor after its restart; None when that takes too long to wait for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_VERDICT):
            while True:
                try:
                    return Met(**await actor.hello.remote())
                except ActorUnavailableError:
                    await asyncio.sleep(0.1)
                except RayError:
                    return None
    return None


def _dismiss(actor: Any) -> None:
    """End it, now or when it can be reached again."""
    with contextlib.suppress(RayError):
        ray.kill(actor)


def _first_line(error: BaseException) -> str:
    """The first line of what Ray says, which may be a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__)[:300]


# -- the cluster


@contextlib.contextmanager
def _cluster(address: str, state: Path) -> Iterator[None]:
    """Part of the cluster at ``address``; one of our own ends with this, files and all."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as ends:
        own: dict[str, Any] = {}
        folder = ""
        _knock(address)
        if address == "local":
            folder = _folder(state / "ray")
            ends.callback(shutil.rmtree, folder, ignore_errors=True)
            own = {"include_dashboard": False, "object_store_memory": _STORE, "_temp_dir": folder}
        ends.callback(ray.shutdown)
        with _home(Path(folder)) if own else contextlib.nullcontext():
            ray.init(address=address, configure_logging=False, log_to_driver=True, **own)
        yield


def _knock(address: str) -> None:
    """Raise OSError where nothing listens: Ray would end this process after a minute of trying."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Let Ray's own processes have ``folder`` as their home.

    One of them asks the network which cloud this is (a name server and 169.254.169.254), also
    where nothing is to be reported; but not where it finds its cluster described at home.
    """
    (folder / "ray_bootstrap_config.yaml").write_text("{}")
    before = str(Path.home())
    os.environ["HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ["HOME"] = before


def _folder(link: Path) -> str:
    """A new folder that only we can read, in place of one that a killed watcher left.

    Not below the root, which is linked to it: the names of sockets must be short.
    """
    prefix = os.path.join(tempfile.gettempdir(), "steady-ray-")
    if link.is_symlink():
        if os.readlink(link).startswith(prefix):
            shutil.rmtree(os.readlink(link), ignore_errors=True)
        link.unlink()
    folder = tempfile.mkdtemp(prefix="steady-ray-")
    link.symlink_to(folder)
    return folder
