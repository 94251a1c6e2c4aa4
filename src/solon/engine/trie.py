"""What many token sequences begin with, laid out once.

    trie = build_trie([Continuation(ids=(5, 7, 8, 9), start=3), Continuation(ids=(5, 7, 8, 4), start=3)], [0, 1])
    trie.ids, len(trie.segments), len(trie.wanted)      # [5, 7, 8], 1, 2

Sorted, each sequence adds the tokens that it does not share with the one before, so that the nodes stand in preorder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from solon.engine.sharing import common_length


class Continuation(NamedTuple):
    """A token sequence whose tokens from `start` on are scored; 1 <= start <= len(ids)."""

    ids: tuple[int, ...]
    start: int

    @property
    def places(self) -> range:
        """After which tokens those stand that are scored."""
        return range(self.start - 1, len(self.ids) - 1)


@dataclass(slots=True)
class Segment:
    """A run of nodes without a fork."""

    start: int
    """Number of its first node."""
    end: int
    """One past its last node."""
    last: int
    """One past the last node below it: nodes end to last - 1 are its descendants, and no others."""

    def cut(self, node: int) -> list[Segment]:
        """End it before a node of it, and give the rest; nothing where it does not go beyond."""
        if not self.start < node < self.end:
            return []
        rest = Segment(node, self.end, self.last)
        self.end = node
        return [rest]


class Wanted(NamedTuple):
    """A log-probability that is asked for."""

    number: int
    """Of the continuation, to whose sum it belongs."""
    node: int
    """After which the token stands."""
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """What is scored, in preorder."""

    ids: list[int]
    """A token per node."""
    depths: list[int]
    """Its position in the continuations that hold it."""
    segments: list[Segment]
    wanted: list[Wanted]
    """By node."""


def build_trie(continuations: Sequence[Continuation], numbers: Sequence[int]) -> Trie:
    """The trie of the continuations with these numbers, each without its last token, which needs no node."""
    ids: list[int] = []
    depths: list[int] = []
    segments: list[Segment] = []
    wanted: list[Wanted] = []
    path: list[int] = []
    last: tuple[int, ...] = ()
    open_ends: list[tuple[int, Segment]] = []
    for number in sorted(numbers, key=lambda number: continuations[number].ids):
        tokens = continuations[number].ids
        inputs = tokens[:-1]
        shared = common_length(last, inputs)
        start, end = len(ids), len(ids) + len(inputs) - shared
        _fork(open_ends, segments, depth=shared)
        if end > start:
            segments.append(Segment(start, end, end))
            open_ends.append((shared, segments[-1]))
            for _, above in open_ends:
                above.last = end
        ids += inputs[shared:]
        depths += range(shared, len(inputs))
        path[shared:] = range(start, end)
        last = inputs
        wanted += [Wanted(number, path[place], tokens[place + 1]) for place in continuations[number].places]
    return Trie(ids=ids, depths=depths, segments=segments, wanted=sorted(wanted, key=lambda one: one.node))


def _fork(open_ends: list[tuple[int, Segment]], segments: list[Segment], *, depth: int) -> None:
    """Close the segments that begin at `depth` or below, and cut the one that goes on beyond it; they stand with the
    depth of their first node."""
    while open_ends and open_ends[-1][0] >= depth:
        open_ends.pop()
    if open_ends:
        begins, segment = open_ends[-1]
        segments += segment.cut(segment.start + depth - begins)
