"""One rate over all who ask, and none during a pause."""

import asyncio

import pytest
from gutenberg_server import Clock

from quire.pace import Pace


@pytest.mark.parametrize(("rate", "askers"), [(2.0, 1), (2.0, 7), (50.0, 20)])
def test_requests_keep_their_distance_however_many_ask(rate: float, askers: int) -> None:
    clock = Clock()
    pace = Pace(rate, clock)

    async def run() -> list[float]:
        begun, waiting = [], [clock.now] * askers  # each asker: when it asks next
        while len(begun) < 40:
            at = waiting.index(min(waiting))
            clock.now = waiting[at]
            wait = await pace.turn()
            if not wait:
                begun.append(clock.now)
            waiting[at] = clock.now + (wait or 0.001)
        return begun

    begun = asyncio.run(run())
    gaps = [b - a for a, b in zip(begun, begun[1:], strict=False)]
    assert min(gaps) >= 1 / rate - 1e-6 and begun[-1] - begun[0] == pytest.approx(39 / rate, rel=0.05)


def test_a_pause_holds_for_all_and_a_shorter_one_does_not_end_it() -> None:
    clock = Clock()
    pace = Pace(10.0, clock)

    async def run() -> tuple[float, float]:
        await pace.turn()
        await pace.hold(60)
        await pace.hold(5)
        first = await pace.turn()
        clock.now += first
        return first, await pace.turn()

    assert asyncio.run(run()) == (60, 0)
