"""Rows, their identity, and the files they live in."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, cast, overload

from solon.errors import InputError

_log = logging.getLogger(__name__)


class _NotFinite(ValueError):
    """NaN or an infinity, which Python's reader takes for JSON; no row could be written with it."""


class NumberedRow(NamedTuple):
    """A row of a JSONL file and the line it stands on, counted from 1."""

    line: int
    row: dict[str, Any]


def canonical_json(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII. NaN and infinities are a ValueError."""
    return _canonical(value)


# Made once: `json.dumps` makes an encoder for every call, which is half of its time for a row.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _refuse_constant(text: str) -> float:
    raise _NotFinite(text)


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) from (run seed, row id, step, ...): order, batching and resuming never change it."""
    return int.from_bytes(hashlib.sha256(canonical_json(parts).encode()).digest()[:8], "big") >> 1


def content_id(value: object) -> str:
    """16 hexadecimal digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal; of a folder: of the sorted list of its files' names and hashes.

    Raises InputError if there is nothing at `path`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        listing = canonical_json([[name, file_hash(path / name)] for name in files])
        return hashlib.sha256(listing.encode()).hexdigest()
    if not path.is_file():
        raise InputError("there is no such file or folder", path=path, remedy="check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_line(row: Mapping[str, Any]) -> bytes:
    """The row as a line of JSONL, UTF-8, with its newline. A lone surrogate stays as its JSON escape."""
    return _line(row).encode("utf-8", "backslashreplace") + b"\n"


def read_numbered_rows(path: str | Path, *, every: int = 1) -> Iterator[NumberedRow]:
    """The objects of a JSONL file (also .gz) with their line numbers; blank lines are passed over, and of `every` lines
    all but the first, which saves the time of parsing them.

    Raises InputError with the line for what is not a JSON object, and for a file that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file", path=path, remedy="check the path")
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if (number - 1) % every == 0 and line.strip():
                    yield NumberedRow(number, _parse_row(line, path=path, number=number))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"the gzip stream is broken: {error}"
        raise InputError(message, path=path, line=number + 1, remedy="fetch or write the file again") from error


def read_rows(path: str | Path, *, every: int = 1) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file (also .gz), as `read_numbered_rows` reads them."""
    return (numbered.row for numbered in read_numbered_rows(path, every=every))


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file whole or not at all: beside it first, then renamed into place."""
    with _replacing(Path(path)) as target, target.open("wb") as file:
        file.writelines(rows.lines() if isinstance(rows, RowStore) else map(row_line, rows))
        _to_disk(file.fileno(), file.flush)


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises InputError if it is not there or not JSON."""
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file", path=path, remedy="check the path")
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", path=path, line=error.lineno) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=path) from error


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file whole or not at all, indented. NaN and infinities are a ValueError."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    with _replacing(Path(path)) as target, target.open("wb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
        _to_disk(file.fileno(), file.flush)


def _parse_row(line: bytes, *, path: Path, number: int) -> dict[str, Any]:
    remedy = "one JSON object a line"
    try:
        row = _decode(line.decode().removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", path=path, line=number, remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=path, line=number, remedy="save the file as UTF-8") from error
    except _NotFinite as error:
        raise InputError(
            f"{error} is not JSON", path=path, line=number, remedy="write null, or leave it out"
        ) from error
    except (ValueError, RecursionError) as error:
        # Python reads integers of at most 4,300 digits, and lists within lists as deep as its stack.
        what = "an integer of thousands of digits" if isinstance(error, ValueError) else "values nested too deeply"
        raise InputError(what, path=path, line=number, remedy=remedy) from error
    if not isinstance(row, dict):
        raise InputError(f"a {type(row).__name__}, not an object", path=path, line=number, remedy=remedy)
    return cast(dict[str, Any], row)


@contextmanager
def _replacing(path: Path) -> Generator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _to_disk(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)


class _Unnamed:
    """A temporary file without a name: it is gone with what holds it, or with the process, whatever ends that."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below

    def __del__(self) -> None:
        self.file.close()


class RowStore(Sequence[dict[str, Any]]):
    """Rows that stand in a temporary file and are parsed when they are asked for: 16 bytes of memory a row.

    What is read is equal to what was put in, as JSON has it, and new each time.
    """

    content_id: str
    """The `content_id` of the list of the rows, which is never made."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._unnamed = _Unnamed()
        self._starts, self._ends, end = array("Q"), array("Q"), 0
        digest = hashlib.sha256(b"[")
        for row in rows:
            digest.update((b"," if end else b"") + canonical_json(row).encode())
            self._starts.append(end)
            end += self._unnamed.file.write(row_line(row))
            self._ends.append(end)
        digest.update(b"]")
        self.content_id = digest.hexdigest()[:16]
        self._unnamed.file.flush()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return _decode(self._line(place).decode())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (_decode(line.decode()) for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """The rows as lines of JSONL."""
        return map(self._line, range(len(self)))

    def at(self, places: Iterable[int]) -> Sequence[dict[str, Any]]:
        """Those at the places; they stay in the same file."""
        return _Places(self, array("Q", places))

    def _line(self, place: int) -> bytes:
        start = self._starts[place]
        return os.pread(self._unnamed.file.fileno(), self._ends[place] - start, start)


class _Places(Sequence[dict[str, Any]]):
    """Some of the rows of a store."""

    def __init__(self, store: RowStore, places: array[int]) -> None:
        self._store, self._places = store, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(place, slice):
            return [self._store[number] for number in self._places[place]]
        return self._store[self._places[place]]


class Journal:
    """A file of rows that is only appended to, one JSON object a line, keyed by a column.

    Opening it cuts off a torn last line and loads the keys; InputError for any other line that is not a row, or a key
    that stands there twice. A row is with the operating system when `append` returns: the death of the process does not
    lose it (the loss of power may; nothing is synced row by row).
    """

    def __init__(self, path: Path, key: str | None = "id") -> None:
        self.path, self._key = path, key
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
        for line, row in read_numbered_rows(self.path):
            self._num_rows += 1
            if self._key is None:
                continue
            identity = row.get(self._key)
            if not isinstance(identity, str):
                raise InputError(f"a row without {self._key!r}", path=self.path, line=line, remedy="remove the line")
            if identity in self._ids:
                message = f"{self._key} {identity!r} stands there twice"
                raise InputError(message, path=self.path, line=line, remedy="remove one of the lines")
            self._ids.add(identity)

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
