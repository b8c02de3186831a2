"""Slots on the machines of a Ray cluster: one actor each, and the watcher's end of the line.

Ray places the actors, starts them anew and carries bytes; which job runs where, and whether it
runs again, is decided by the watcher alone. What happens inside a slot is far.py's business.
An actor asks for what one slot needs (``resources``), and nothing is claimed for it before it
has said that its model is loaded: further slots may wait for machines that come later.

All of Ray lives in one thread, which also must be the one that starts a cluster of our own:
its processes end with that thread, however the watcher ends. To the main thread it speaks
through a queue; nothing there ever waits for Ray.

The only importer of Ray, and imported only when the configuration asks for it.
"""

import asyncio
import contextlib
import logging
import os
import queue
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Read when Ray is imported.
os.environ["RAY_AUTH_MODE"] = "token"  # whoever reaches an open Ray port may run anything
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing phones home
# Or a cluster for one machine would listen on all its addresses.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")

import ray
from ray.exceptions import ActorUnavailableError, RayError

from watcher.errors import SteadyError
from watcher.executor import Died, Event, Picture, Ready, Slot, Started, Step, WorkerSpec
from watcher.executor.far import FarSlot, Report
from watcher.executor.local import BACKOFF
from watcher.executor.seat import Seat, Task
from watcher.jobs import JobRequest, forwards_of

log = logging.getLogger("watcher.executor")

SILENCE = 30.0  #: an actor says something every second; Ray notices a cut link after 65
_LOOK = 5.0  #: seconds between looks at how many slots the cluster has room for
_PATIENCE = 10.0  #: seconds for a machine to come before that is called trouble
_STORE = 1 << 30  #: bytes of pictures on their way, in a cluster of our own


# -- what the thread tells


@dataclass(frozen=True)
class _Joined:
    """We are part of the cluster."""


@dataclass(frozen=True)
class _Met:
    """An actor is there; its model is not loaded yet."""

    name: str
    pid: int
    host: str


@dataclass(frozen=True)
class _Lost:
    """The actor is gone, or cannot be reached."""

    how: str


@dataclass(frozen=True)
class _Trouble:
    """Nothing can run until a slot is ready."""

    error: SteadyError


_News = _Joined | _Met | _Lost | _Trouble | Report


class _Silent(Exception):
    """Nothing was heard of an actor for too long."""


@dataclass
class _Place(Seat):
    """A slot as the watcher sees it, across its actors."""

    met: _Met | None = None
    report: Report | None = None
    heard: float = 0.0
    sent: int = 0  #: jobs given to this very actor
    ready: bool = False

    def wants(self) -> bool:
        """Not while a job is on its way: what was said before it arrived does not count."""
        return self.report is not None and self.report.wants and self.report.taken == self.sent

    def told(self, now: float) -> dict[str, Any]:
        """For live.json; ``now`` is monotonic."""
        if self.met is None or self.report is None:
            return self.status(now)
        return self.report.status | {
            "slot": self.slot,
            "host": self.met.host,
            "actor_pid": self.met.pid,
            "heard_seconds_ago": round(now - self.heard, 3),
            "restarts": self.restarts + self.report.status["restarts"],
            "last_death": self.report.status["last_death"] or self.last_death,
        }


class RayExecutor:
    """Actors of a Ray cluster (see Executor for the promises).

    Args:
        spec: what the workers load.
        address: ``local`` starts a cluster of our own on this machine, which ends with us;
            ``auto``, ``host:port`` and ``ray://…`` join one, for which RAY_AUTH_TOKEN or
            RAY_AUTH_TOKEN_PATH must be set.
        state: folder for the token of a cluster of our own.
        slots: how many actors; None: as many as the cluster has room for.
        resources: what one slot takes of its machine, ``{"GPU": 1}``.
        limits: keyword arguments of the LocalExecutor behind each slot.
        silence: seconds after which an actor that says nothing counts as lost.
        actor: the class of the actors.

    Raises SteadyError ``bad_config``.
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
        silence: float = SILENCE,
        backoff: Sequence[float] = BACKOFF,
        actor: type[FarSlot] = FarSlot,
    ) -> None:
        spec.order(spec.device)  # options that are no plain data are refused now
        self._spec = spec
        self._address = address
        self._state = state
        self._slots = slots
        self._resources = dict(resources)
        self._limits = dict(limits)
        self._silence = silence
        self._backoff = tuple(backoff)
        self._actor = actor
        self._places: list[_Place] = []
        self._news: queue.SimpleQueue[tuple[Slot, _News] | None] = queue.SimpleQueue()
        self._events: list[Event] = []
        self._changed = False
        self._joining = False
        self._stopping = False
        self._closed = False
        self.counters: Counter[str] = Counter()
        # Of the thread:
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._leaving = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._orders: dict[Slot, tuple[str, asyncio.Queue[tuple[Any, ...]]]] = {}
        _identify(address, state)

    # -- the protocol

    def start(self) -> None:
        self._thread.start()

    def events(self, timeout: float) -> list[Event]:
        if self._joining:
            _keep_signals()
        if not self._closed:
            deadline = time.monotonic() + max(0.0, timeout)
            while True:
                self._listen(0.0 if self._events else deadline - time.monotonic())
                if self._events or self._changed or time.monotonic() >= deadline:
                    break
        self._changed = False
        found, self._events = self._events, []
        return found

    def wake(self) -> None:
        self._news.put(None)

    def wants(self) -> list[Slot]:
        if self._stopping:
            return []
        asking = [place for place in self._places if place.wants()]
        asking.sort(key=lambda place: (place.state == "unloaded", len(place.tasks)))
        return [place.slot for place in asking]

    def send(self, slot: Slot, job_id: str, attempt: int, request: JobRequest) -> None:
        if slot not in self.wants():
            raise ValueError(f"slot {slot} takes no job now")
        total = forwards_of(request.num_inference_steps or 1)
        task = Task(job_id, attempt, request, total=total)
        task.message()  # ValueError for one too large
        place = self._places[slot]
        place.tasks.append(task)
        place.sent += 1
        plain = request.model_dump(mode="json", exclude_none=True)
        self._order(place, "take", job_id, attempt, plain)

    def cancel(self, job_id: str) -> None:
        for place in self._places:
            for task in place.tasks:
                if task.job_id == job_id and not task.cancelled:
                    task.cancelled = True
                    self._order(place, "cancel", job_id)

    def stop(self, grace: float) -> list[tuple[str, int]]:
        if self._closed:
            return []
        self._stopping = True
        for place in self._places:
            self._order(place, "leave", grace)
        deadline = time.monotonic() + grace + 3
        while any(place.met for place in self._places) and time.monotonic() < deadline:
            self._listen(deadline - time.monotonic())
        unfinished = [(t.job_id, t.attempt) for place in self._places for t in place.tasks]
        self._leaving.set()
        if self._end is not None:
            self._call(self._end.set)
        if self._thread.ident is not None:
            self._thread.join(20)
        self._closed = True
        return unfinished

    def status(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [place.told(now) for place in self._places]

    # -- what the thread has told

    def _listen(self, timeout: float) -> None:
        """Take in all there is; wait for the first of it."""
        with contextlib.suppress(queue.Empty):
            news = self._news.get(timeout=timeout) if timeout > 0 else self._news.get_nowait()
            while True:
                if news is None:
                    self._changed = True
                else:
                    self._take_in(*news)
                news = self._news.get_nowait()

    def _take_in(self, slot: Slot, news: _News) -> None:
        self._changed = True
        while len(self._places) <= slot:
            number = len(self._places)
            self._places.append(_Place(number, self._spec.device, b"", state="waiting"))
        place = self._places[slot]
        match news:
            case _Joined():
                _keep_signals()
                self._joining = False
            case _Met():
                place.met, place.report, place.sent = news, None, 0
                place.state, place.heard = "loading", time.monotonic()
            case Report():
                self._heard(place, news)
            case _Lost():
                self._mourn(place, news.how)
            case _Trouble():
                if not any(place.ready for place in self._places):
                    lost = Died(slot, [], "has no machine", news.error, blame=False)
                    self._events.append(lost)

    def _heard(self, place: _Place, report: Report) -> None:
        place.report, place.heard = report, time.monotonic()
        place.state = report.status["state"]
        for event in report.events:
            known = self._known(place, event)
            if known is not None:
                self._events.append(known)
        if report.left:
            place.met = None
            place.state = "stopped"

    def _known(self, place: _Place, event: Event) -> Event | None:
        """``event`` as ours: its slot's number here, and nothing of jobs the slot does not have.

        A job that was given to somebody else meanwhile has another attempt: what comes late of
        the older one is dropped here.
        """
        slot = place.slot
        match event:
            case Ready():
                place.ready = True
                return Ready(slot, event.info)
            case Died():
                place.ready = False
                self.counters["deaths"] += 1
                lost = [one for one in event.lost if _task(place, one[0], one[1])]
                for job_id, attempt, _ in lost:
                    place.tasks.remove(_task(place, job_id, attempt))  # type: ignore[arg-type]
                return Died(slot, lost, event.how, event.environment, event.blame)
        task = _task(place, event.job_id, event.attempt)
        if task is None:
            self.counters["late"] += 1
            return None
        match event:
            case Started():
                task.started = time.monotonic()
            case Step():
                task.done, task.total = event.done, event.total
            case _:
                place.tasks.remove(task)
                self.counters["pictures" if isinstance(event, Picture) else "failed"] += 1
        return _moved(event, slot)

    def _mourn(self, place: _Place, how: str) -> None:
        """An actor is gone. Never a job's fault: what that does, it does to a process of its own."""
        lost = [(task.job_id, task.attempt, task.started is not None) for task in place.tasks]
        met, place.met, place.report, place.ready = place.met, None, None, False
        place.state, place.last_death = "waiting", how
        if self._stopping or met is None:
            return
        place.tasks.clear()
        place.restarts += 1
        self.counters["deaths"] += 1
        log.warning("slot %d: actor %d on %s: %s", place.slot, met.pid, met.host, how)
        self._events.append(Died(place.slot, lost, how, blame=False))

    # -- orders, from the main thread to the other

    def _order(self, place: _Place, method: str, *arguments: Any) -> None:
        if place.met is not None:
            slot, name = place.slot, place.met.name
            self._call(lambda: self._put(slot, name, (method, name, *arguments)))

    def _call(self, do: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: it has left
                self._loop.call_soon_threadsafe(do)

    def _put(self, slot: Slot, name: str, order: tuple[Any, ...]) -> None:
        known, orders = self._orders.get(slot, ("", None))
        if orders is not None and known == name:
            orders.put_nowait(order)

    # -- the thread in which Ray lives

    def _live(self) -> None:
        """Be part of a cluster until told to leave; once more after every end that was none."""
        failures = 0
        while not self._leaving.is_set():
            self._joining = True
            try:
                with _cluster(self._address, self._state):
                    self._tell(0, _Joined())
                    failures = 0
                    asyncio.run(self._serve())
            except (RayError, OSError, RuntimeError, ValueError) as error:
                words = f"Ray cannot be reached ({_short(error)})."
                self._tell(0, _Trouble(SteadyError("worker_unavailable", words)))
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
                    self._tell(0, _Trouble(self._no_machine()))
                    begun = float("inf")
                ended = asyncio.create_task(self._end.wait())
                done, _ = await asyncio.wait(
                    {ended, *tended}, timeout=_LOOK, return_when="FIRST_COMPLETED"
                )
                ended.cancel()
                for task in done - {ended}:
                    task.result()
        finally:
            for task in tended:
                task.cancel()
            self._loop = None

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

    async def _tend(self, slot: Slot) -> None:
        """One actor after another for this slot. Returns when it has left as it was told."""
        actor = None
        failures = 0
        while True:
            begun = time.monotonic()
            try:
                actor = actor or self._hire()
                await self._attend(slot, actor)
                return
            except _Silent:
                self._tell(slot, _Lost(f"silent for {self._silence:g} s"))
                _dismiss(actor)
                actor = None
            except RayError as error:
                self._tell(slot, _Lost(_short(error)))
                if not isinstance(error, ActorUnavailableError):  # else Ray starts it anew
                    _dismiss(actor)
                    actor = None
            finally:
                self._orders.pop(slot, None)
            failures = 0 if time.monotonic() - begun > 60 else failures + 1
            await asyncio.sleep(self._backoff[min(failures - 1, len(self._backoff) - 1)] or 0.2)

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
        return made.remote(self._spec, self._limits)

    async def _attend(self, slot: Slot, actor: Any) -> None:
        """Hear one actor and pass orders on, until it left. Raises RayError, _Silent."""
        met = _Met(**await actor.hello.remote())  # waits for a machine, however long
        orders: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
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
            call = asyncio.ensure_future(_answer(actor.hear.remote()))
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

    def _tell(self, slot: Slot, news: _News) -> None:
        self._news.put((slot, news))


async def _hand_on(orders: "asyncio.Queue[tuple[Any, ...]]", actor: Any) -> None:
    """One at a time, so that they arrive in their order."""
    while True:
        method, *arguments = await orders.get()
        await getattr(actor, method).remote(*arguments)


async def _answer(ref: Any) -> list[Report]:
    answer: list[Report] = await ref
    return answer


def _dismiss(actor: Any) -> None:
    """End it, now or when it can be reached again."""
    with contextlib.suppress(RayError):
        ray.kill(actor)


def _task(place: _Place, job_id: str, attempt: int) -> Task | None:
    return next((t for t in place.tasks if (t.job_id, t.attempt) == (job_id, attempt)), None)


def _moved(event: Event, slot: Slot) -> Event:
    return replace(event, slot=slot)


def _short(error: BaseException) -> str:
    """The first line of what Ray says, which may be a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


# -- the cluster


def _keep_signals() -> None:
    """Ray puts handlers of its own below Python's while we join, from whichever thread; with
    them a process that was told to end leaves by an abort."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


def _identify(address: str, state: Path) -> None:
    """Ray's own password, always on."""
    if address == "local":
        path = state / "ray_token"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    elif not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        raise SteadyError(
            "bad_config",
            f"The Ray cluster at `{address}` is joined with its token.",
            remedy="Put it into a file and set RAY_AUTH_TOKEN_PATH to that, here as on every node.",
        )


@contextlib.contextmanager
def _cluster(address: str, state: Path) -> Iterator[None]:
    """Part of the cluster at ``address``; one of our own ends with this, files and all."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as ends:
        own: dict[str, Any] = {}
        if address == "local":
            folder = _folder(state / "ray")
            ends.callback(shutil.rmtree, folder, ignore_errors=True)
            own = {"include_dashboard": False, "object_store_memory": _STORE, "_temp_dir": folder}
        ends.callback(ray.shutdown)
        ray.init(address=address, configure_logging=False, log_to_driver=True, **own)
        yield


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
