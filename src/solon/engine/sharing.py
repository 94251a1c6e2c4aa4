"""What the rows of a model need not compute again: beginnings that many of them have in common, and what a chain has
already read and written.

    common_beginnings([few_shot + [1], few_shot + [2]], have=[0, 0], least_tokens=32, least_rows=2)   # [few_shot]

Both are found by token ids and bounded in bytes; what was dropped is computed again, and no text changes beyond
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from solon.engine.attention import KeysValues


@dataclass(eq=False, slots=True)
class Beginning:
    """The keys and values, each [heads, tokens, width], of tokens with which several rows begin."""

    ids: tuple[int, ...]
    layers: list[KeysValues]
    users: int = 0
    """Rows and kept chains behind it; it cannot be dropped before they have gone."""

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.layers)


class Beginnings:
    """All that are stored; beyond `limit` bytes those without users are dropped, the longest unused first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.stored: list[Beginning] = []
        """The last used one last."""

    def longest(self, ids: Sequence[int]) -> Beginning | None:
        """The longest with which `ids` begin."""
        found = [one for one in self.stored if tuple(ids[: len(one.ids)]) == one.ids]
        return max(found, key=lambda one: len(one.ids), default=None)

    def fits(self, size: int) -> bool:
        """Whether there is room for `size` bytes beside those in use."""
        return size + sum(one.num_bytes for one in self.stored if one.users) <= self.limit

    def add(self, beginning: Beginning) -> None:
        over = beginning.num_bytes + sum(one.num_bytes for one in self.stored) - self.limit
        for one in [one for one in self.stored if not one.users]:
            if over <= 0:
                break
            self.stored.remove(one)
            over -= one.num_bytes
        self.stored.append(beginning)

    def use(self, beginning: Beginning | None) -> None:
        if beginning is not None:
            beginning.users += 1
            self.stored.remove(beginning)
            self.stored.append(beginning)

    def leave(self, beginning: Beginning | None) -> None:
        if beginning is not None:
            beginning.users -= 1


@dataclass(eq=False, slots=True, kw_only=True)
class Kept:
    """What a chain's last row held: `ids`, of which the first stand in `beginning`, the others in `layers`."""

    ids: list[int]
    beginning: Beginning | None
    layers: list[KeysValues]


class Chains:
    """What is kept of chains between their requests, the last used one last."""

    def __init__(self, beginnings: Beginnings) -> None:
        self.beginnings = beginnings
        self.kept: dict[str, Kept] = {}
        self.num_bytes = 0

    def keep(self, chain: str, kept: Kept, *, limit: int) -> None:
        """Keep it in place of what the chain had; beyond `limit` bytes the longest unused ones are dropped."""
        self.take(chain)
        self.kept[chain] = kept
        self.num_bytes += num_bytes(kept.layers)
        self.beginnings.use(kept.beginning)
        while self.num_bytes > limit:
            self.take(next(iter(self.kept)))

    def take(self, chain: str | None) -> Kept | None:
        """What was kept of the chain, which is no longer kept then."""
        kept = self.kept.pop(chain, None) if chain is not None else None
        if kept is not None:
            self.num_bytes -= num_bytes(kept.layers)
            self.beginnings.leave(kept.beginning)
        return kept


def num_bytes(layers: Sequence[KeysValues]) -> int:
    """Of keys and values together."""
    return sum(one.keys.nbytes + one.values.nbytes for one in layers)


# ---- what rows have in common


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return int(np.argmax(np.asarray(one[:size]) != np.asarray(other[:size])))


def common_beginnings(
    rows: Sequence[list[int]], have: Sequence[int], *, least_tokens: int, least_rows: int
) -> list[tuple[int, ...]]:
    """The beginnings that, computed and stored once, spare most tokens; every row is behind one at most.

    have: tokens of each row that it shares already. A beginning of n tokens spares n - have in each of its rows and
    costs n itself. It has at least `least_tokens` tokens, and spares some in at least `least_rows` rows.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    lengths = [common_length(rows[a], rows[b]) for a, b in pairwise(order)]

    def best(first: int, end: int) -> tuple[int, list[tuple[int, ...]]]:
        """Of the rows order[first:end]: how many tokens are spared, and by which beginnings. Rows that have more in
        common stand together, so that they are a node of the tree of all rows, and its children lie between the
        places where neighbours have no more in common than all."""
        if end - first < max(2, least_rows):
            return 0, []
        depth = min(lengths[first : end - 1])
        cuts = [place + 1 for place in range(first, end - 1) if lengths[place] == depth]
        parts = [best(a, b) for a, b in zip([first, *cuts], [*cuts, end], strict=True)]
        deeper = sum(spared for spared, _ in parts)
        gains = [depth - have[row] for row in order[first:end] if have[row] < depth]
        here = sum(gains) - depth
        if depth >= least_tokens and len(gains) >= least_rows and here > deeper:
            return here, [tuple(rows[order[first]][:depth])]
        return deeper, [beginning for _, found in parts for beginning in found]

    return best(0, len(rows))[1]
