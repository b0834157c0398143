"""One rate for all requests, whoever makes them: the arithmetic alone, without waiting.

It is asked, not slept in, so that one object can pace coroutines, processes and machines: each sleeps for itself.
"""

import time
from collections.abc import Callable


class Pace:
    """At most `rate` requests a second, evenly spaced, and none while a host has asked for a pause.

    The methods are coroutines that never wait, so that an object in another process can stand in for this one.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self._interval, self._clock = 1 / rate, clock
        self._free = clock()  # when the next request may begin

    async def turn(self) -> float:
        """0 when the caller may send one request now; else the seconds after which to ask again."""
        now = self._clock()
        if now < self._free:
            return self._free - now
        self._free = now + self._interval
        return 0.0

    async def hold(self, seconds: float) -> None:
        """No turn within so many seconds from now; a longer pause that is running stays."""
        self._free = max(self._free, self._clock() + seconds)
