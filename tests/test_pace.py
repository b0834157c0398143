"""One rate over all who ask, and none during a pause, however late a sleeper wakes."""

import asyncio
import heapq
import random

import pytest
from gutenberg_server import Clock

from quire.pace import Pace, Turn


def requests(pace: Pace, clock: Clock, *, users: int, count: int, late: float, holds: dict[int, float]) -> list[float]:
    """When each of `count` requests begins, `users` asking at once, each waking up to `late` seconds after its turn.

    `holds`: after so many requests, a pause of so many seconds is asked for.
    """
    draw = random.Random(0)

    async def run() -> list[float]:
        begun: list[float] = []
        waiting: list[tuple[float, int, Turn | None]] = [(clock.now, user, None) for user in range(users)]
        while len(begun) < count:
            clock.now, user, had = heapq.heappop(waiting)
            turn = await pace.turn(had.slot if had else None)
            if turn.wait:
                heapq.heappush(waiting, (clock.now + turn.wait + draw.random() * late, user, turn))
                continue
            begun.append(clock.now)
            if len(begun) in holds:
                await pace.hold(holds[len(begun)])
            heapq.heappush(waiting, (clock.now + 1e-6, user, None))
        return begun

    return asyncio.run(run())


@pytest.mark.parametrize(("rate", "users"), [(2.0, 1), (2.0, 7), (50.0, 20), (200.0, 8), (1000.0, 32)])
def test_the_average_holds_and_nobody_comes_before_a_turn(rate: float, users: int) -> None:
    clock = Clock()
    began = clock.now
    begun = requests(Pace(rate, clock), clock, users=users, count=400, late=0.004, holds={})
    assert all(at >= began + place / rate - 1e-6 for place, at in enumerate(begun))
    assert begun[-1] - began == pytest.approx(399 / rate, rel=0.01, abs=0.005)


def test_who_asks_seldom_saves_up_no_turns() -> None:
    clock = Clock()
    pace = Pace(10.0, clock)
    requests(pace, clock, users=1, count=1, late=0, holds={})
    clock.now += 60
    begun = requests(pace, clock, users=5, count=20, late=0, holds={})
    assert all(b - a >= 0.1 - 1e-6 for a, b in zip(begun, begun[1:], strict=False))


def test_a_pause_stops_those_too_who_wait_for_their_turn_and_takes_no_more_than_itself() -> None:
    clock = Clock()
    begun = requests(Pace(200.0, clock), clock, users=8, count=400, late=0.004, holds={100: 5.0, 300: 0.02})
    for place, pause in ((100, 5.0), (300, 0.02)):
        assert begun[place] - begun[place - 1] >= pause - 1e-6
    assert begun[-1] - begun[0] == pytest.approx(399 / 200 + 5.02, abs=0.05)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = Clock()
    pace = Pace(10.0, clock)

    async def run() -> tuple[float, float]:
        await pace.turn()
        await pace.hold(60)
        await pace.hold(5)
        first = await pace.turn()
        clock.now += first.wait
        return first.wait, (await pace.turn(first.slot)).wait

    assert asyncio.run(run()) == (60, 0)
