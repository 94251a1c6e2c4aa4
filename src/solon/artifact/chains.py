"""Many chains of requests at once, and how a long step tells how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

_Item = TypeVar("_Item")


class Progress(Protocol):
    """How a long step tells how far it is. Library code calls it; the command line draws it."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """`what` begins: `total` units, of which `done` were there before (a resumed step)."""
        ...

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        ...

    def end(self) -> None:
        """The step is over, finished or not."""
        ...


class _Silent:
    def start(self, what: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def end(self) -> None:
        pass


silent: Progress = _Silent()
"""Progress that shows nothing: the default everywhere."""


async def run_chains(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]], *, window: int) -> None:
    """Run `work` on every item, at most `window` at a time; the next item is pulled when one ends.

    The first exception cancels the others and is raised.
    """
    assert window >= 1, f"window is {window}"
    slots = asyncio.Semaphore(window)

    async def chain(item: _Item) -> None:
        try:
            await work(item)
        finally:
            slots.release()

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                await slots.acquire()
                group.create_task(chain(item))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
