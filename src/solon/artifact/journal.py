"""A file of rows that is only appended to."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from solon.artifact.rows import read_numbered_rows, read_rows, row_line
from solon.errors import InputError

_log = logging.getLogger(__name__)


class Journal:
    """A file of rows that is only appended to, one JSON object a line, keyed by a column.

    Opening it cuts off a torn last line and loads the keys; InputError for any other line that is not a row, or a key
    that stands there twice. A row is with the operating system when `append` returns: the death of the process does not
    lose it (the loss of power may; nothing is synced row by row). `seen` is called with each row: with those that stand
    there, then with each that is appended.
    """

    def __init__(
        self, path: Path, key: str | None = "id", *, seen: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self.path, self._key, self._seen = path, key, seen
        self._ids: set[str] = set()
        self._num_rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = _cut_torn_line(path)
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        key, seen, ids = self._key, self._seen, self._ids
        for line, row in read_numbered_rows(self.path):
            self._num_rows += 1
            if key is not None:
                identity = row.get(key)
                if not isinstance(identity, str):
                    raise InputError(f"a row without {key!r}", path=self.path, line=line, remedy="remove the line")
                ids.add(identity)
                if len(ids) < self._num_rows:
                    message = f"{key} {identity!r} stands there twice"
                    raise InputError(message, path=self.path, line=line, remedy="remove one of the lines")
            if seen is not None:
                seen(row)

    def __contains__(self, identity: object) -> bool:
        return identity in self._ids

    def __len__(self) -> int:
        return self._num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row whose key is new. A full disk is an OSError and leaves the file as it was."""
        assert self._descriptor is not None, f"{self.path} is closed"
        if self._key is not None:
            identity = row[self._key]
            assert isinstance(identity, str), f"{self._key} is not a string: {identity!r}"
            assert identity not in self._ids, f"{identity!r} is already in {self.path}"
        line = row_line(row)
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.truncate(self.path, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._size += written
        self._num_rows += 1
        if self._key is not None:
            self._ids.add(row[self._key])
        if self._seen is not None:
            self._seen(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows from the file, in the order in which they were appended."""
        return read_rows(self.path)

    def close(self) -> None:
        """Give the file back; closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _cut_torn_line(path: Path) -> int:
    """Remove what stands after the last newline; returns the size in bytes that is left."""
    if not path.exists():
        return 0
    size = end = path.stat().st_size
    whole = 0
    with path.open("rb") as file:
        while end > 0 and whole == 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            whole, end = (start + newline + 1 if newline >= 0 else 0), start
    if whole < size:
        _log.warning("%s: cut off a torn last line of %d bytes; that row is done again", path, size - whole)
        os.truncate(path, whole)
    return whole
