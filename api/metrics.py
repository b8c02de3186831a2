"""Figures for Prometheus, computed from the record and the watcher's pulse at every scrape.

So they survive restarts and are the same from every replica. No prompt, id or file name is
in any label.
"""

import shutil
import statistics
import threading
import time
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from api.door import Door, Kept
from watcher.errors import SteadyError
from watcher.jobs import ENDED, JobState
from watcher.store import JobFilter

_BOUNDS = (0.1, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600, 3600)  #: seconds
_ARRIVALS_SECONDS = 15.0
_PHASES = ("encode", "denoise", "decode", "save")


class Figures(Collector):
    """Every metric of the service. What cannot be read is left out, never guessed.

    The first scrape counts the whole record, later ones what came since.
    """

    def __init__(self, door: Door, version: str) -> None:
        self._door = door
        self._version = version
        self._counting = threading.Lock()
        self._rev = 0
        self._count = 0
        self._spreads = {name: [0.0, *(0 for _ in _BOUNDS)] for name in ("wait", "run")}
        self._arrivals = Kept(door.store.arrivals, _ARRIVALS_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at every scrape."""
        try:
            yield from self._of_record()
        except SteadyError:
            yield _gauge("steady_record_readable", "Can the record be read?", 0)
        else:
            yield _gauge("steady_record_readable", "Can the record be read?", 1)
        yield from self._of_pulse()
        yield from self._of_disk()
        build = InfoMetricFamily("steady_build", "What runs here.")
        model = self._door.pulse().get("model") or {}
        words = {"version": self._version, "model": str(model.get("name") or "")}
        build.add_metric([], words | {"revision": str(model.get("revision") or "")})
        yield build

    def _of_record(self) -> Iterator[Metric]:
        store = self._door.store
        counts = store.counts()
        jobs = GaugeMetricFamily("steady_jobs", "Jobs by state.", labels=["status"])
        finished = CounterMetricFamily(
            "steady_jobs_finished", "Jobs that ended (a retry takes one back).", labels=["outcome"]
        )
        for state in JobState:
            jobs.add_metric([state.value], counts[state])
            if state in ENDED:
                finished.add_metric([state.value], counts[state])
        yield jobs
        yield finished
        eta = self._door.all_seconds(counts[JobState.QUEUED])
        if eta is not None:
            yield _gauge("steady_queue_eta_seconds", "Until all jobs are done.", eta)
        paused = store.get("paused")
        yield _gauge("steady_paused", "Is the queue paused?", int(bool(paused)))
        since = store.waiting_since()
        age = 0.0 if since is None else max(0.0, time.time() - since / 1e6)
        yield _gauge("steady_queue_oldest_age_seconds", "Age of the oldest job that waits.", age)
        yield from self._times()
        yield from self._of_recent()
        files = CounterMetricFamily(
            "steady_inbox_files", "Files and bodies that were read.", labels=["source", "result"]
        )
        for source, refused, number in self._arrivals():
            files.add_metric([source, "refused" if refused else "accepted"], number)
        yield files

    def _times(self) -> Iterator[Metric]:
        with self._counting:
            tally = self._door.store.tally(self._rev, _BOUNDS)
            self._rev = tally.rev
            self._count += tally.count
            for name, spread in (("wait", tally.wait), ("run", tally.run)):
                fresh = (spread.total, *spread.within)
                self._spreads[name] = [
                    a + b for a, b in zip(self._spreads[name], fresh, strict=True)
                ]
            spreads, count = dict(self._spreads), self._count
        for name, metric, words in (
            ("wait", "steady_queue_wait_seconds", "From recorded to started."),
            ("run", "steady_job_duration_seconds", "From started to completed."),
        ):
            total, *within = spreads[name]
            buckets = [(str(float(b)), n) for b, n in zip(_BOUNDS, within, strict=True)]
            histogram = HistogramMetricFamily(metric, words)
            histogram.add_metric([], [*buckets, ("+Inf", count)], total)
            yield histogram

    def _of_recent(self) -> Iterator[Metric]:
        """What the last pictures say: medians, as gauges."""
        jobs = self._door.store.jobs(JobFilter(state=JobState.COMPLETED), limit=50)
        phases: dict[str, list[float]] = {}
        for job in jobs:
            for phase, seconds in (job.facts.get("timings") or {}).items():
                if phase in _PHASES and isinstance(seconds, int | float):
                    phases.setdefault(phase, []).append(float(seconds))
        family = GaugeMetricFamily(
            "steady_job_phase_seconds", "Median of the recent pictures.", labels=["phase"]
        )
        for phase, values in phases.items():
            family.add_metric([phase], statistics.median(values))
        yield family
        steps = [
            (ended - started) / 1e6 / forwards
            for _, _, forwards, started, ended in self._door.store.durations()
        ]
        if steps:
            middle = statistics.median(steps)
            yield _gauge("steady_step_seconds", "Median of the recent steps.", middle)

    def _of_pulse(self) -> Iterator[Metric]:
        pulse = self._door.pulse()
        yield _gauge("steady_watcher_up", "Does the watcher live?", int(pulse["alive"]))
        if "updated_at" in pulse:
            age = max(0.0, time.time() - pulse["updated_at"] / 1e6)
            yield _gauge("steady_watcher_heartbeat_age_seconds", "Since its last sign.", age)
        workers = list(pulse.get("workers", ())) if pulse["alive"] else []
        up = [w for w in workers if w.get("pid")]
        loaded = [w for w in workers if w.get("state") in ("ready", "busy")]
        yield _gauge("steady_worker_up", "Worker processes that live.", len(up))
        yield _gauge("steady_model_loaded", "Workers whose model is loaded.", len(loaded))
        if heard := [w["heard_seconds_ago"] for w in up if w.get("heard_seconds_ago") is not None]:
            yield _gauge(
                "steady_worker_heartbeat_age_seconds", "Since the quietest worker's last sign.",
                max(heard),
            )  # fmt: skip
        inbox = pulse.get("inbox") or {}
        if isinstance(inbox.get("waiting"), int):
            yield _gauge("steady_inbox_waiting", "Files not taken yet.", inbox["waiting"])

    def _of_disk(self) -> Iterator[Metric]:
        free = GaugeMetricFamily("steady_disk_free_bytes", "Free disk.", labels=["dir"])
        for name, folder in (("outputs", self._door.outputs), ("inbox", self._door.inbox)):
            try:
                free.add_metric([name], shutil.disk_usage(folder).free)
            except OSError:
                continue
        yield free


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)
