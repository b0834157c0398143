"""One rate for all requests, whoever makes them: the arithmetic alone, without waiting.

It is asked, not slept in, so that one object can pace coroutines, processes and machines: each sleeps for itself.
"""

import time
from collections.abc import Callable
from typing import NamedTuple


class Turn(NamedTuple):
    """A place in the row of requests: `wait` seconds until it comes, 0 when the caller may send now."""

    wait: float
    slot: float  # by the clock of the `Pace`; means nothing elsewhere


class Pace:
    """At most `rate` requests a second on average, in slots evenly spaced, and none while a host wants a pause.

    Who has to wait has a slot of its own, so that a caller that wakes up late delays nobody else: the average holds at
    rates whose interval is shorter than a sleep is exact. The methods are coroutines that never wait, so that an object
    in another process can stand in for this one.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self._interval, self._clock = 1 / rate, clock
        self._free = clock()  # the first slot that nobody has
        self._held = self._free  # slots before this one are void

    async def turn(self, slot: float | None = None) -> Turn:
        """A slot for one request; or, `slot` being one that was waited for, whether it still holds.

        It does not where a pause has begun meanwhile: the answer then is another slot to wait for. So ask until
        `wait` is 0.
        """
        now = self._clock()
        if slot is None or slot < self._held:
            slot = max(self._free, now)
            self._free = slot + self._interval
        return Turn(max(0.0, slot - now), slot)

    async def hold(self, seconds: float) -> None:
        """No turn within so many seconds from now; a longer pause that is running stays."""
        self._held = max(self._held, self._clock() + seconds)
        self._free = max(self._free, self._held)
