"""Checkpoints: the steps of the protocol by their names, after each of which the process may die.

Here a test can end it. Keeps nothing, so a crash leaves nothing.
"""

from collections.abc import Callable


def go_on(step: str) -> None:
    """What is done after a step in everyday life: nothing."""


#: Called with the name of every step that was done, from any thread.
after: Callable[[str], None] = go_on


def reached(step: str) -> None:
    """This step is done, and what it leaves behind is there."""
    after(step)
