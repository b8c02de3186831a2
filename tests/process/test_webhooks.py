"""Webhooks: that every event is told, once recorded and in order, to whom it may be told."""

import itertools
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Bench
from history import rows, untold
from receivers import OTHER, SECRET, Receiver
from roots import Root
from store_children import Clock

from watcher.addresses import Address, not_allowed
from watcher.config import Config, Webhook
from watcher.errors import SteadyError
from watcher.jobfile import parse
from watcher.jobfile.planner import Planner
from watcher.limits import Limits
from watcher.log import now_us
from watcher.notify import SCHEDULE, Notifier
from watcher.notify.hooks import Webhooks, payload_of
from watcher.store import JobStore
from watcher.webhooks import Poster, is_inside

Make = Callable[..., Root]
FAST = 0.001  #: of the schedule: ten attempts in some minutes


def hooked(make_root: Make, receiver: Receiver, *words: str, **more: Any) -> Root:
    hook = {"url": receiver.url, "secret": SECRET} | more
    return make_root(*words, webhooks=[hook])


@pytest.mark.parametrize("zone", ["UTC", "Asia/Karachi"])
def test_a_receiver_that_is_down_while_the_service_is_killed_twice_hears_everything(
    make_root: Make, zone: str
) -> None:
    down = True
    with Receiver(lambda path: 503 if down else 204) as receiver:
        root = hooked(make_root, receiver)
        root.extra["TZ"] = zone
        names = [f"p{n} steps=1" for n in range(4)] + ["bad raise"]
        root.drop("a.json", json.dumps([{"prompt": name} for name in names]))
        for _ in range(2):
            watcher = root.watch(pace=FAST)
            asked = len(receiver.asked)
            until(lambda n=asked: len(receiver.asked) > n, 200, "an attempt")
            watcher.send_signal(signal.SIGKILL)
            watcher.wait(10)
        watcher = root.watch(pace=FAST)
        until(lambda: root.states().count("completed") == 4, 60, "all made")
        asked = len(receiver.asked)
        until(lambda: len(receiver.asked) > asked, 200, "an attempt")
        down = False
        until(lambda: len(receiver.heard) >= 6, 90, f"{root.said}")
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(20) == 0
    assert len(receiver.heard) == 6 and receiver.refused == []
    assert untold(root.folder, receiver.told) == []


def test_what_is_told_is_what_http_answers_and_a_retry_is_told_in_order(tmp_path: Path) -> None:
    clock = Clock(5)
    with Bench(tmp_path, clock=clock) as bench:
        store = bench.store
        store.listen({"x": ["job.failed", "job.cancelled", "batch.completed"]})
        body = {"prompt": "a fox", "metadata": {"a": 1}, "label": "l"}
        assert bench.client.post("/jobs", json=body).status_code == 202
        [id_] = bench.watcher.take_in()
        store.cancel(id_)
        answered = bench.client.get(f"/jobs/{id_}").json()
        store.retry(id_)
        store.cancel(id_)
        first = store.next_delivery("x")
        assert first is not None and first.event == "job.cancelled"
        told = json.loads(json.dumps(payload_of(first)))
        assert told["data"] == answered and told["timestamp"].endswith("05Z")
        store.attempted(first.id, error="down", again_at=2**50)
        assert store.next_delivery("x") is None  # the second waits for the first
        store.attempted(first.id)
        second = store.next_delivery("x")
        assert second is not None and second.id != first.id and second.seq > first.seq
        assert store.archived(answered["ticket"])
        assert not store.archived(answered["ticket"])  # a crash in between put it away again
        store.attempted(second.id)
        batch = store.next_delivery("x")
        assert batch is not None and len(store.deliveries()) == 3
        whole = json.loads(json.dumps(payload_of(batch)))
        assert whole["data"] == bench.client.get(f"/batches/{answered['ticket']}").json()


def test_a_slow_receiver_delays_nobody(make_root: Make) -> None:
    with Receiver() as slow, Receiver() as quick:
        slow.hang = threading.Event()
        root = make_root(webhooks=[{"url": each.url, "secret": SECRET} for each in (slow, quick)])
        watcher = root.watch()
        for n in range(3):
            root.drop(f"{n}.json", json.dumps({"prompt": f"p{n} steps=1"}))
        until(lambda: len(quick.heard) == 6, 60, "the quick one hears all")
        assert len(slow.asked) == 1
        assert len(list((root.inbox / "done").rglob("*.result.json"))) == 3
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(10) == 0  # nor a stop


def test_gone_switches_off_and_what_is_dead_is_said(make_root: Make) -> None:
    with Receiver(lambda path: 410) as gone:
        root = make_root(webhooks=[{"url": f"{gone.url}?token=hidden", "secret": SECRET}])
        root.drop("a.json", json.dumps([{"prompt": f"p{n} steps=1"} for n in range(3)]))
        watcher = root.watch(pace=FAST)
        until(lambda: root.pulse().get("warnings"), 60, "it is said")
        [warning] = root.pulse()["warnings"]
        assert warning["code"] == "undelivered" and gone.url in warning["message"]
        assert "410" in warning["message"]
        assert "hidden" not in warning["message"] + root.said.read_text()
        root.wait_for("completed", "completed", "completed")
        assert rows(root.folder, "SELECT * FROM listeners") == []
        watcher.send_signal(signal.SIGTERM)
        watcher.wait(20)
        assert len(gone.asked) <= 2


def test_after_ten_attempts_it_is_given_up_and_can_be_sent_again(tmp_path: Path) -> None:
    status = 500
    moments = itertools.count(now_us(), 10**12)  # by the next look every wait is over
    with (
        Bench(tmp_path, clock=lambda: next(moments)) as bench,
        Receiver(lambda path: status) as receiver,
    ):
        hook = Webhook(url=f"{receiver.url}?token=hidden", secret=SECRET)
        notifier = Notifier(bench.store, [Webhooks([hook], {})], schedule=[0.0] * len(SCHEDULE))
        notifier.start()
        try:
            bench.client.post("/jobs", json={"prompt": "a"})
            [id_] = bench.watcher.take_in()
            bench.store.cancel(id_)
            notifier.ring()
            listed = "/webhooks/deliveries?state=dead"
            until(lambda: bench.client.get(listed).json()["deliveries"], 30, "given up")
            [dead] = bench.client.get(listed).json()["deliveries"]
            assert (dead["attempts"], dead["last_status"], len(receiver.asked)) == (10, 500, 10)
            status = 204
            assert dead["endpoint"] == f"{receiver.url}?…"
            again = bench.client.post(f"/webhooks/deliveries/{dead['id']}/resend")
            assert (again.status_code, again.json()["state"]) == (200, "pending")
            until(lambda: receiver.heard, 30, "it arrives")
            assert receiver.heard[0].id == dead["id"] and receiver.refused == []
            until(lambda: not bench.client.get(listed).json()["deliveries"], what="no more dead")
            assert bench.client.post("/webhooks/deliveries/no/resend").status_code == 404
        finally:
            notifier.stop()


def test_what_waited_behind_a_dead_receiver_is_given_up_with_it(tmp_path: Path) -> None:
    """One attempt a minute would take ten thousand minutes for a thousand events."""
    clock = Clock()
    with Bench(tmp_path, clock=clock) as bench, Receiver(lambda path: 500) as receiver:
        waiting_events(bench, receiver)
        clock.at += 10**6
        told_of(bench, receiver, schedule=[0.0] * len(SCHEDULE))
        assert len(bench.store.deliveries(state="dead")) == 30
        assert len(receiver.asked) == len(SCHEDULE), "only the first is tried, and as often as any"


def test_a_receiver_that_is_away_as_the_service_comes_back_hears_all(tmp_path: Path) -> None:
    """While it was away itself the service did not try, however long that was."""
    status, clock = 500, Clock()
    with Bench(tmp_path, clock=clock) as bench, Receiver(lambda path: status) as receiver:
        waiting_events(bench, receiver)
        clock.at += 2 * int(sum(SCHEDULE) * 1e6)
        told_of(bench, receiver)
        status = 204
        clock.at += 10**7
        told_of(bench, receiver)
        assert len(receiver.heard) == 30


def waiting_events(bench: Bench, receiver: Receiver) -> None:
    """Have thirty events in the outbox."""
    bench.store.listen({receiver.url: ["job.cancelled"]})
    bench.client.post("/jobs", json=[{"prompt": f"p{n}"} for n in range(30)])
    for id_ in bench.watcher.take_in():
        bench.store.cancel(id_)


def told_of(bench: Bench, receiver: Receiver, **how: Any) -> None:
    """Tell what can be told now."""
    hooks = Webhooks([Webhook(url=receiver.url, secret=SECRET)], {})
    notifier = Notifier(bench.store, [hooks], **how)
    notifier.start()
    try:
        until(lambda: notifier.idle, 30, "told")
    finally:
        notifier.stop()


def test_addresses_that_were_told_are_forgotten(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench, Receiver() as receiver:
        store = bench.store
        bench.client.post("/jobs", json=[{"prompt": f"p{n}"} for n in range(40)])
        endpoints = [f"{receiver.url}?job={n}" for n in range(40)]
        hooks = Webhooks([Webhook(url=e, secret=SECRET) for e in endpoints], {})
        notifier = Notifier(store, [hooks])
        store.listen({e: ["job.cancelled"] for e in endpoints})
        store.cancel(bench.watcher.take_in()[0])
        assert store.due_endpoints() == sorted(endpoints)
        notifier.start()
        try:
            until(lambda: len(receiver.heard) == 40 and notifier.idle, 60, "all are told")
            assert notifier._lines == {}
        finally:
            notifier.stop()


def test_a_job_may_name_an_address_where_its_host_is_allowed(make_root: Make) -> None:
    with Receiver(secret=OTHER) as receiver:
        origin = receiver.url.removesuffix("/hook")
        root = make_root(webhook_hosts={origin: OTHER})
        root.drop(
            "a.yaml", f"defaults: {{callback_url: '{origin}/mine'}}\njobs: [a steps=1, b steps=1]\n"
        )
        root.drop("b.yaml", "prompt: c\nwebhook: https://elsewhere.example/x?token=hidden\n")
        root.drop("bad.yaml", "prompt: c\nwebhook: https://me:hidden@elsewhere.example/x\n")
        root.drop("c.json", '{"prompt": "d steps=1"}')
        root.finish()
        told = [(each.type, each.path) for each in receiver.heard]
        assert told == [("job.completed", "/mine")] * 2 + [("batch.completed", "/mine")]
        assert receiver.refused == []
        for name, why in (("b", "does not allow"), ("bad", "must hold no user, password")):
            error = (root.inbox / "refused" / f"{name}.yaml.error.json").read_text()
            assert why in error and "hidden" not in error + root.said.read_text()
        [picture] = (root.folder / "outputs").rglob("a_0001.png")
        assert b"/mine" not in picture.read_bytes()  # who was told is in no picture


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ("https://x.example/", "`webhooks`: it must be a list."),
        ([{"url": "https://x.example/"}], "`webhooks.0.secret`: it is missing."),
        ([{"url": "x.example", "secret": SECRET}], "`webhooks.0`: the url is no address"),
        ([{"url": "https://x.example", "secret": "x"}], "`webhooks.0`: a secret is whsec_"),
        ([{"url": "https://x.example", "secret": SECRET}] * 2, "https://x.example stands there"),
    ],
)
def test_receivers_that_cannot_be_used_are_refused_in_words(
    tmp_path: Path, hooks: Any, words: str
) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"webhooks": hooks}))
    with pytest.raises(SteadyError) as caught:
        Config.load(tmp_path)
    assert words in caught.value.message and ".." not in caught.value.message


LISTED = ("hooks.example.com", "*.example.org", "http://n8n.lan:5678")


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://hooks.example.com/a?b=c", True),
        ("https://HOOKS.example.com./a", True),
        ("https://a.b.example.org/", True),
        ("http://n8n.lan:5678/x", True),
        ("https://example.org/", False),
        ("http://hooks.example.com/", False),
        ("https://hooks.example.com:8443/", False),
        ("https://hooks.example.com@evil.example/", False),
        ("https://evil.example#hooks.example.com", False),
        ("https://hooks.example.com.evil.example/", False),
        ("https://evilexample.org/", False),
        ("http://n8n.lan/x", False),
        ("https://n8n.lan:5678/x", False),
        ("file:///etc/passwd", False),
        ("gopher://hooks.example.com/", False),
        ("https://hooks.example.com\\@evil.example/", False),
        ("https:///hooks.example.com", False),
        ("https://hooks.example.com:99999/", False),
        ("https://hooks.example.com/\r\nHost: evil", False),
        ("//hooks.example.com/", False),
        ("", False),
    ],
)
def test_whom_a_job_may_name(url: str, fine: bool) -> None:
    assert (not_allowed(url, LISTED) is None) is fine
    if not fine and url:
        with pytest.raises(SteadyError):
            parse(json.dumps({"prompt": "x", "webhook": url}).encode(), ".json", Planner(Limits()))


INSIDE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12::1",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2001:db8::1",
]


def test_no_connection_is_made_to_addresses_inside() -> None:
    made: list[Any] = []

    def connect(place: Any, seconds: float) -> socket.socket:
        made.append(place)
        raise OSError("never")

    def answers(address: str) -> Any:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return (family, socket.SOCK_STREAM, 6, "", (address, 443))

    for address in INSIDE:
        assert is_inside(address), address
        for found in ([answers(address)], [answers("93.184.216.34"), answers(address)]):
            poster = Poster(resolve=lambda host, port, f=found: f, connect=connect)
            reply = poster.post("https://hooks.example.com/", b"{}", {})
            assert reply.error and "not on the public" in reply.error
    # As people write this machine to get past a list: the resolver of the system says what it is.
    with Receiver() as receiver:
        for name in ("127.1", "0x7f.1", "2130706433", "017700000001", "localhost", "[::1]",
                     "[::ffff:127.0.0.1]", "0", "127.0.0.1."):  # fmt: skip
            reply = Poster().post(f"http://{name}:{receiver.port}/", b"{}", {})
            assert reply.error, name
        assert receiver.asked == []
    assert made == [] and not is_inside("93.184.216.34") and not is_inside("2606:4700::1111")


def test_the_name_is_resolved_once_and_the_checked_address_is_connected_to() -> None:
    with Receiver() as receiver:
        place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", receiver.port))
        metadata = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))
        minds = [[place], [metadata]]
        connected: list[Any] = []

        def connect(where: Any, seconds: float) -> socket.socket:
            connected.append(where[4])
            return socket.create_connection(where[4], seconds)

        poster = Poster(resolve=lambda host, port: minds.pop(0), connect=connect)
        url = f"http://rebind.example:{receiver.port}/"
        reply = poster.post(url, b"", {}, inside=True)
        assert reply.status is not None or reply.error  # the body is no JSON: it may be refused
        assert connected == [("127.0.0.1", receiver.port)] and len(minds) == 1
        assert receiver.asked == [f"rebind.example:{receiver.port}"]
        refused = poster.post(url, b"{}", {})
        assert refused.error and "169.254.169.254" in refused.error and len(connected) == 1


def test_no_redirect_and_no_proxy_is_followed_and_an_attempt_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Receiver() as elsewhere, Receiver() as receiver:
        receiver.answer = lambda path: (302, {"Location": elsewhere.url})
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
            monkeypatch.setenv(name, elsewhere.url)
        reply = Poster().post(receiver.url, b"{}", {}, inside=True)
        assert (reply.status, reply.ok, len(receiver.asked)) == (302, False, 1)
        receiver.answer = lambda path: (503, {"Retry-After": "120"})
        assert Poster().post(receiver.url, b"{}", {}, inside=True).retry_after == 120
        receiver.answer = lambda path: (503, {"Retry-After": "9" * 40})
        assert Poster().post(receiver.url, b"{}", {}, inside=True).retry_after == 86400
        assert Poster().post(receiver.url, b"x" * 300_000, {}, inside=True).error
        assert elsewhere.asked == []
        receiver.hang = threading.Event()
        reply = Poster(seconds=0.5).post(receiver.url, b"{}", {}, inside=True)
        assert reply.error and "No answer within" in reply.error


def test_the_name_of_a_certificate_is_checked() -> None:
    assert Address.of("https://hooks.example.com/").netloc == "hooks.example.com"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def plain() -> None:
            line, _ = server.accept()
            with line:
                line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=plain)
        thread.start()
        reply = Poster().post(f"https://127.0.0.1:{port}/", b"{}", {}, inside=True)
        thread.join()
        assert reply.error and not reply.ok


def test_old_deliveries_go_and_a_million_jobs_without_listeners_write_none(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        store: JobStore = bench.store
        bench.client.post("/jobs", json=[{"prompt": f"p{n}"} for n in range(30)])
        ids = bench.watcher.take_in()
        store.cancel(ids[0])
        assert store.deliveries() == [] == store.due_endpoints()
        store.listen({"x": ["job.cancelled"], "y": []})
        for id_ in ids[1:]:
            store.cancel(id_)
        assert len(store.deliveries()) == 29 and store.due_endpoints() == ["x"]
        while due := store.next_delivery("x"):
            store.attempted(due.id)
        store.thin_out(kept=10)
        left = store.deliveries()
        assert len(left) == 10 and {each.state for each in left} == {"delivered"}
        assert left[0].job().id == ids[-1]
