"""Decoding steps as CUDA graphs: a step that is like an earlier one is started by one call to the driver.

    graphs = Graphs(run)
    logits_BV = graphs(reading)      # run(reading), recorded when its shape comes a second time

A step of a model of 1B starts about a thousand short kernels, and starting them takes the CPU longer than running them
takes the GPU. A graph has its addresses and shapes fixed: numbers are copied into the tensors that were recorded, and
steps are padded to few shapes by whoever makes them (see `Slots`).
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solon.engine.attention import Shared, Span

_cuda: Any = torch.cuda
_MOST = 32
"""Steps that are kept recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a forward pass reads, and where its keys and values go."""

    ids_BL: Tensor
    columns_BL: Tensor
    """Of the store."""
    positions_BL: Tensor
    rows_B: Tensor
    """Of the store."""
    read: slice | Tensor
    """The same rows, in place where that is possible."""
    width: int
    """Columns that are seen."""
    fresh: bool
    """Whether nothing stands in the rows yet."""
    shared: Sequence[Shared] = ()
    spans: Sequence[Span] = ()
    """Of a step on a CPU."""

    @property
    def numbers(self) -> list[Tensor]:
        """The tensors that differ between passes of the same shape."""
        return [self.ids_BL, self.columns_BL, self.positions_BL, self.rows_B, *(one.rows for one in self.shared)]

    @property
    def shape(self) -> tuple[int, ...]:
        """What a recorded pass has fixed; beginnings by their identity."""
        shared = (number for one in self.shared for number in (id(one.layers), len(one.rows)))
        return (*self.ids_BL.shape, self.width, *shared)

    def copied(self) -> Reading:
        """With tensors of its own for the numbers."""
        return replace(
            self,
            ids_BL=self.ids_BL.clone(),
            columns_BL=self.columns_BL.clone(),
            positions_BL=self.positions_BL.clone(),
            rows_B=self.rows_B.clone(),
            shared=[Shared(one.layers, one.rows.clone()) for one in self.shared],
        )


@dataclass(frozen=True, slots=True)
class _Recorded:
    reading: Reading
    graph: Any
    logits_BV: Tensor


class Graphs:
    """Runs passes, and records those whose shape comes again; the longest unused of more than _MOST is dropped.

    What a pass gives stands until the next one.
    """

    def __init__(self, run: Callable[[Reading], Tensor]) -> None:
        self._run = run
        self._seen: set[tuple[int, ...]] = set()
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._pool: Any = None

    def __call__(self, reading: Reading) -> Tensor:
        shape = reading.shape
        if shape not in self._seen:
            # What the libraries set up at their first call cannot be recorded.
            self._seen.add(shape)
            return self._run(reading)
        found = self._recorded.pop(shape, None)
        if found is None:
            found = self._record(reading)
        else:
            for old, new in zip(found.reading.numbers, reading.numbers, strict=True):
                old.copy_(new)
        self._recorded[shape] = found
        if len(self._recorded) > _MOST:
            del self._recorded[next(iter(self._recorded))]
        found.graph.replay()
        return found.logits_BV

    def clear(self) -> None:
        """Forget all: the store or a beginning has moved."""
        self._seen.clear()
        self._recorded.clear()
        # Memory of graphs that are all gone cannot be taken again.
        self._pool = None

    def _record(self, reading: Reading) -> _Recorded:
        reading, graph = reading.copied(), _cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with _no_garbage_collection(), _cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_BV = self._run(reading)
        self._pool = graph.pool()
        return _Recorded(reading, graph, logits_BV)


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """It may destroy the graphs of an engine that is gone, and what a graph's end asks of the driver breaks a recording
    off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def rounded(number: int) -> int:
    """The number, or at most a quarter more, so that there are few: 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ..."""
    step = max(1, (1 << max(0, number - 1).bit_length()) // 8)
    return -(-number // step) * step
