"""Rows, their identity, and the files they live in."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

from pydantic_core import from_json

from solon.errors import InputError


class _NotFinite(ValueError):
    """NaN or an infinity, which Python's reader takes for JSON; no row could be written with it."""


class NumberedRow(NamedTuple):
    """A row of a JSONL file and the line it stands on, counted from 1."""

    line: int
    row: dict[str, Any]


def canonical_json(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII. NaN and infinities are a ValueError."""
    return _canonical(value)


def _encoder(*, ensure_ascii: bool, separators: tuple[str, str], sort_keys: bool) -> Callable[[object], str]:
    """`json.dumps` with these settings and without NaN. That makes an encoder in C for every call, which takes half of
    its time for a row; this one is made once, of parts of `json` that are not in its documentation."""
    plain = json.JSONEncoder(ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys, allow_nan=False)
    parts, (items, keys) = cast(Any, json.encoder), separators
    if parts.c_make_encoder is None:
        return plain.encode
    escape = parts.encode_basestring_ascii if ensure_ascii else parts.encode_basestring
    pieces = parts.c_make_encoder(None, plain.default, escape, None, keys, items, sort_keys, False, False)
    return lambda value: "".join(pieces(value, 0))


_canonical = _encoder(ensure_ascii=True, separators=(",", ":"), sort_keys=True)
_line = _encoder(ensure_ascii=False, separators=(", ", ": "), sort_keys=False)


def _refuse_constant(text: str) -> float:
    raise _NotFinite(text)


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) from (run seed, row id, step, ...): order, batching and resuming never change it."""
    return int.from_bytes(hashlib.sha256(canonical_json(parts).encode()).digest()[:8], "big") >> 1


def content_id(value: object) -> str:
    """16 hexadecimal digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


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


def need_file(path: str | Path) -> Path:
    """The path of a file. Raises InputError where there is none, or a folder."""
    path = Path(path)
    if path.is_dir():
        raise InputError("a folder, where a file is wanted", path=path, remedy="name the file")
    if not path.is_file():
        raise InputError("there is no such file", path=path, remedy="check the path")
    return path


def row_line(row: Mapping[str, Any]) -> bytes:
    """The row as a line of JSONL, UTF-8, with its newline. A lone surrogate stays as its JSON escape."""
    return _line(row).encode("utf-8", "backslashreplace") + b"\n"


def read_numbered_rows(path: str | Path, *, every: int = 1) -> Iterator[NumberedRow]:
    """The objects of a JSONL file (also .gz) with their line numbers; blank lines are passed over, and of `every` lines
    all but the first, which saves the time of parsing them.

    Raises InputError with the line for what is not a JSON object, and for a file that is not there.
    """
    path = need_file(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if every > 1 and (number - 1) % every:
                    continue
                row = _quick_row(line)
                if row is None and line.strip():
                    row = _parse_row(line, path=path, number=number)
                if row is not None:
                    yield NumberedRow(number, row)
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
    path = need_file(path)
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


def _quick_row(line: bytes) -> dict[str, Any] | None:
    """What `_parse_row` gives, in half of the time, or None where that must look: the reader of pydantic refuses what
    Python's does, and lone surrogates, a byte order mark and lists 200 deep besides."""
    try:
        row = from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    return cast(dict[str, Any], row) if isinstance(row, dict) else None


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


_BATCH = 128
"""Stored rows that are written or read at once."""


class RowStore(Sequence[dict[str, Any]]):
    """Rows that stand in a temporary file and are parsed when they are asked for: 8 bytes of memory a row.

    What is read is equal to what was put in, as JSON has it, and new each time.
    """

    content_id: str
    """The `content_id` of the list of the rows, which is never made."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._unnamed = _Unnamed()
        self._ends = array("Q")
        digest = hashlib.sha256(b"[")
        rows = iter(rows)
        while batch := list(islice(rows, _BATCH)):
            digest.update((b"," if self._ends else b"") + canonical_json(batch)[1:-1].encode())
            lines = [row_line(row) for row in batch]
            self._unnamed.file.writelines(lines)
            self._ends.extend(islice(accumulate(map(len, lines), initial=self._start(len(self))), 1, None))
        digest.update(b"]")
        self.content_id = digest.hexdigest()[:16]
        self._unnamed.file.flush()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(place, slice):
            return list(map(_row_of, self.lines(range(*place.indices(len(self))))))
        place = range(len(self))[place]
        return _row_of(self._read(place, place + 1))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_row_of, self.lines())

    def lines(self, places: Sequence[int] | None = None) -> Iterator[bytes]:
        """The rows, or those at the places, as lines of JSONL."""
        places = range(len(self)) if places is None else places
        for start in range(0, len(places), _BATCH):
            batch = list(places[start : start + _BATCH])
            first, end = batch[0], batch[-1] + 1
            if batch == list(range(first, end)):  # Neighbours, which are read together.
                yield from self._read(first, end).splitlines(keepends=True)
            else:
                yield from (self._read(place, place + 1) for place in batch)

    def at(self, places: Iterable[int]) -> Sequence[dict[str, Any]]:
        """Those at the places; they stay in the same file."""
        return _Places(self, array("Q", places))

    def _read(self, first: int, end: int) -> bytes:
        start = self._start(first)
        return os.pread(self._unnamed.file.fileno(), self._start(end) - start, start)

    def _start(self, place: int) -> int:
        return self._ends[place - 1] if place else 0


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
            return list(map(_row_of, self._store.lines(self._places[place])))
        return self._store[self._places[place]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_row_of, self.lines())

    def lines(self) -> Iterator[bytes]:
        """The rows as lines of JSONL."""
        return self._store.lines(self._places)


def _row_of(line: bytes) -> dict[str, Any]:
    row = _quick_row(line)
    return _decode(line.decode()) if row is None else row


def ids_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The `id` of each row; stored rows that begin with it, as most do, are not parsed for it."""
    if isinstance(rows, RowStore | _Places):
        return map(_id_of, rows.lines())
    return (row["id"] for row in rows)


_ID = b'{"id": "'


def _id_of(line: bytes) -> str:
    end = line.find(b'"', len(_ID))
    identity = line[len(_ID) : end]
    if line.startswith(_ID) and b"\\" not in identity:
        return identity.decode()
    return _row_of(line)["id"]
