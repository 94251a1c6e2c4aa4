"""Which of several servers takes a request, and how many requests each of them may have in flight.

    replica = await replicas.enter("row 17")     # waits until it may
    try: ...
    finally: replica.leave()
    replica.answered()                           # or .slow_down(...) or .failed()

A chain's requests go to one replica, which holds the cache of its earlier turns: the one with the greatest hash of
(replica, chain), among those that are not left out (rendezvous hashing: Thaler and Ravishankar 1998). If a replica is
left out only its own chains move, and they come back with it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256

FAILURES = 3
"""Failed requests in a row after which a replica is left out; one may be the request's own fault."""
LEFT_OUT_S = 30.0


class Replica:
    """One server. Its limit is halved when it is overloaded, and grows by one with every `limit` answers (AIMD)."""

    def __init__(self, url: str, *, most: int) -> None:
        self.url = url
        self.limit = float(most)
        """Requests that it may have in flight, in [1, most]; the part after the point does not count."""
        self.in_flight = 0
        self.back_s = 0.0
        """On the clock of time.monotonic: when it may be used again, if it is left out."""
        self._most = most
        self._rests_until_s = 0.0
        self._slowed_s = 0.0
        self._failures = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def load(self) -> float:
        """Requests in flight and waiting, by those that it may have."""
        return (self.in_flight + len(self._waiting)) / self.limit

    async def enter(self) -> None:
        """Wait until one more request may be in flight."""
        turn = None
        while self.in_flight >= int(self.limit) or time.monotonic() < self._rests_until_s:
            waiter = asyncio.get_running_loop().create_future()
            # Who waited before and finds the place taken goes to the front again.
            (self._waiting.append if turn is None else self._waiting.appendleft)(waiter)
            turn = waiter
            try:
                await waiter
            except asyncio.CancelledError:
                with suppress(ValueError):
                    self._waiting.remove(waiter)
                self._wake()
                raise
        self.in_flight += 1

    def leave(self) -> None:
        """The request of an `enter` is over."""
        self.in_flight -= 1
        self._wake()

    def answered(self) -> None:
        """It gave an answer, or refused a request that is wrong."""
        self._failures = 0
        self.limit = min(float(self._most), self.limit + 1.0 / self.limit)
        self._wake()

    def slow_down(self, *, asked_s: float, rest_s: float) -> None:
        """It is overloaded: half as many requests at a time, and none for `rest_s` seconds.

        `asked_s` is when the refused request was sent: those sent before the last halving say nothing new.
        """
        now_s = time.monotonic()
        if asked_s > self._slowed_s:
            self._slowed_s = now_s
            self.limit = max(1.0, self.limit / 2)
        if rest_s > 0:
            self._rests_until_s = max(self._rests_until_s, now_s + rest_s)
            # A timer may be a little early.
            asyncio.get_running_loop().call_later(rest_s + 0.01, self._wake)

    def failed(self) -> None:
        """No answer, or an error of the server's. After several in a row it is left out, and begins again slowly."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures = 0
            self.limit = 1.0
            self.back_s = time.monotonic() + LEFT_OUT_S

    def _wake(self) -> None:
        for _ in range(min(len(self._waiting), max(0, int(self.limit) - self.in_flight))):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


class Replicas:
    """Servers with the same model."""

    def __init__(self, urls: Sequence[str], *, most: int) -> None:
        self.all = [Replica(url, most=most) for url in urls]

    async def enter(self, chain: str | None) -> Replica:
        """The replica of `chain`, entered; without one that with the least to do."""
        replica = self.of(chain)
        await replica.enter()
        return replica

    def of(self, chain: str | None) -> Replica:
        """The replica of `chain`. Where all are left out, that which comes back first."""
        now_s = time.monotonic()
        able = [replica for replica in self.all if replica.back_s <= now_s]
        if not able:
            return min(self.all, key=lambda replica: replica.back_s)
        if chain is None:
            return min(able, key=lambda replica: replica.load)
        return max(able, key=lambda replica: sha256(f"{replica.url} {chain}".encode()).digest())
