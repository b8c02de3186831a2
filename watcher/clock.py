"""The time as the record writes it. Waiting is measured by ``time.monotonic``, never by this."""

import time


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000
