"""Slots on Ray that misbehave; imported by the watcher that asks for them and by the actors."""

from watcher.executor.ray.actor import FarSlot, SlotReport


class Stutter(FarSlot):
    """Says everything twice."""

    def hear(self) -> list[SlotReport]:
        return [report for report in super().hear() for _ in range(2)]
