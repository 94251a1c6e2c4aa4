"""The folder of a run and of each of its stages: begun, resumed, refused or skipped."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from solon.artifact.journal import Journal
from solon.artifact.rows import canonical_json, read_json, write_json
from solon.errors import InputError, StageChanged, TooManyFailures

STAGES = (
    "01-revisions",
    "02-sl-cai",
    "03-comparisons",
    "04-preference-model",
    "05-rl-cai",
    "06-evaluation",
    "report",
)
"""The folders of a run, in order."""
ITERATED = ("03-comparisons", "04-preference-model", "05-rl-cai")
"""The stages that each iteration of reinforcement has of its own; from the second on in the folder iteration-N."""

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy")


class StageFolder:
    """The folder of one stage: its rows, failures, metrics and the manifest that says what made them."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or path.name
        self._failures: Journal | None = None
        self._logs: dict[str, Journal] = {}
        self._reasons: dict[tuple[str, str], str] = {}
        self._spent_s = 0.0
        self._began_s = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether the stage has been finished, with whatever settings."""
        manifest = self._manifest()
        return manifest is not None and manifest["status"] == "finished"

    def manifest(self) -> dict[str, Any]:
        """What the stage wrote about itself. Raises InputError if it has not been begun."""
        return cast(dict[str, Any], read_json(self.path / "manifest.json"))

    def begin(self, *, config: Mapping[str, Any], inputs: Mapping[str, str], again: bool = False) -> bool:
        """Open the stage: True if there is work (fresh or resumed), False if it is finished with the same settings.

        `inputs` are hashes by name. Settings or inputs that differ from those the folder was made with raise
        StageChanged, which lists them; `again` deletes what the folder holds and starts fresh. A resumed stage tries
        its failed rows again (the server may be back): their records are dropped here.
        """
        if again:
            self._discard()
        wanted = {"config": _plain(config), "inputs": _plain(inputs)}
        before = self._manifest()
        if before is None:
            if self.path.is_dir() and any(not file.name.startswith(".") for file in self.path.iterdir()):
                raise StageChanged(
                    f"{self.path} holds files but no manifest.json, so that it cannot be told what made them. "
                    f"Choose another place, or delete them and start fresh with --again {self.name}"
                )
        else:
            self._refuse_changes(before, wanted)
            if before["status"] == "finished":
                return False
            self._spent_s = before["seconds"] + max(0.0, self._last_touch() - before["resumed_at"])
            self._drop_failures()
        self._began_s = time.monotonic()
        self._write({**wanted, "status": "running", "seconds": self._spent_s, "resumed_at": time.time()})
        return True

    def journal(
        self,
        file: str = "rows.jsonl",
        key: str | None = "id",
        *,
        seen: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Journal:
        """The journal `file` of this stage, opened for appending; the caller closes it."""
        return Journal(self.path / file, key=key, seen=seen)

    @property
    def failed(self) -> set[str]:
        """The ids of the rows that failed."""
        return {identity for identity, _ in self._failure_reasons()}

    def fail(self, *, id: str, where: str, reason: str, text: str = "") -> None:
        """Record that row `id` failed in step `where`; a second record of the same pair is not written.

        `reason` is a short word for counting ("context-length"), `text` what the model or server said.
        """
        reasons = self._failure_reasons()
        if (id, where) not in reasons:
            if self._failures is None:
                self._failures = self.journal("failures.jsonl", key=None)
            self._failures.append({"id": id, "where": where, "reason": reason, "text": text})
            reasons[id, where] = reason

    def check_failures(self, *, attempted: int, limit: float) -> None:
        """Raise TooManyFailures if the failed rows are a greater share of `attempted` than `limit`, in [0, 1]."""
        num_failed = len(self.failed)
        if attempted and num_failed / attempted > limit:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in self._count_failures().most_common())
            raise TooManyFailures(
                f"{self.name}: {num_failed} of {attempted} rows failed ({reasons}), more than the share of {limit:g} "
                f"that the recipe allows. The rows are in {self.path / 'failures.jsonl'}; mend the cause and run again "
                "(they are tried again), or raise the stage's failure_limit"
            )

    def metric(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        self.log("metrics.jsonl", row)

    def log(self, file: str, row: Mapping[str, Any]) -> None:
        """Append a row without a key to `file`, which `close` gives back."""
        if file not in self._logs:
            self._logs[file] = self.journal(file, key=None)
        self._logs[file].append(row)

    def finish(self, *, counts: Mapping[str, int | float], **more: Any) -> None:
        """Write the manifest of a finished stage: counts, failures per reason, seconds over all resumes, and `more`."""
        before = self._manifest()
        assert before is not None, f"{self.name} was not begun"
        self.close()
        self._write(
            {
                "status": "finished",
                "config": before["config"],
                "inputs": before["inputs"],
                "counts": dict(counts),
                "failures": dict(self._count_failures()),
                "seconds": round(self._spent_s + time.monotonic() - self._began_s, 3),
                **more,
            }
        )

    def close(self) -> None:
        """Give back the files of failures, metrics and logs; they open again when needed."""
        for journal in (self._failures, *self._logs.values()):
            if journal is not None:
                journal.close()
        self._failures, self._logs = None, {}

    def _manifest(self) -> dict[str, Any] | None:
        return self.manifest() if (self.path / "manifest.json").exists() else None

    def _write(self, manifest: Mapping[str, Any]) -> None:
        about = {
            "stage": self.name,
            **manifest,
            "solon": _installed("solon") or "not installed",
            "python": platform.python_version(),
            "packages": {name: found for name in _PACKAGES if (found := _installed(name))},
        }
        write_json(self.path / "manifest.json", about)

    def _refuse_changes(self, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        changes = [
            f"  {name}: {_brief(old)} -> {_brief(new)}"
            for part in ("config", "inputs")
            for name, old, new in _changes(before[part], wanted[part], part)
        ]
        if changes:
            made = "finished" if before["status"] == "finished" else "begun"
            raise StageChanged(
                f"{self.name} in {self.path.parent} was {made} with other settings or inputs:\n"
                + "\n".join(changes)
                + f"\nRun it again from nothing with --again {self.name}, or choose another --out"
            )

    def _failure_reasons(self) -> dict[tuple[str, str], str]:
        path = self.path / "failures.jsonl"
        if not self._reasons and self._failures is None and path.exists():
            self._failures = self.journal("failures.jsonl", key=None)
            self._reasons = {(row["id"], row["where"]): row["reason"] for row in self._failures.rows()}
        return self._reasons

    def _count_failures(self) -> Counter[str]:
        return Counter(self._failure_reasons().values())

    def _drop_failures(self) -> None:
        self.close()
        self._reasons = {}
        (self.path / "failures.jsonl").unlink(missing_ok=True)

    def _discard(self) -> None:
        # Renamed before it is deleted: a half-deleted folder must never be taken for a begun stage.
        self.close()
        self._reasons = {}
        discarded = self.path.with_name(f".{self.path.name}.discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        if self.path.exists():
            self.path.rename(discarded)
            shutil.rmtree(discarded)

    def _last_touch(self) -> float:
        """When a file of the folder was last written: how long an attempt that was killed had lived."""
        return max(file.stat().st_mtime for file in self.path.rglob("*") if file.is_file())


def stage_of(name: str, *, iteration: int) -> str:
    """What a stage is called in an iteration, counted from 1: "iteration-2/05-rl-cai"; in the first by its own name."""
    return f"iteration-{iteration}/{name}" if iteration > 1 and name in ITERATED else name


class RunFolder:
    """runs/NAME: a folder per stage."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def stage(self, name: str, *, iteration: int = 1) -> StageFolder:
        """The stage's folder; `name` is one of STAGES, and `iteration` counts from 1 for those of ITERATED."""
        assert name in STAGES, f"{name!r} is not one of {STAGES}"
        where = stage_of(name, iteration=iteration)
        return StageFolder(self.path / where, where)

    def stages(self) -> list[StageFolder]:
        """The stages' folders that there may be, as far as there are iterations, in the order in which they are made;
        less the report's."""
        last = max((int(path.name.rpartition("-")[2]) for path in self.path.glob("iteration-[0-9]*")), default=1)
        first = [self.stage(name) for name in STAGES if name not in ("06-evaluation", "report")]
        later = [self.stage(name, iteration=number) for number in range(2, last + 1) for name in ITERATED]
        return [*first, *later, self.stage("06-evaluation")]

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep other processes out of the run, so that no row is made twice; freed by the death of the process too.

        Raises InputError if another process works in it.
        """
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                remedy = "wait for it, or choose another --out"
                raise InputError("another process works in this run", path=self.path, remedy=remedy) from error
            yield


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(canonical_json(value)))


def _changes(old: object, new: object, name: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast(dict[str, object], old), cast(dict[str, object], new)
        for key in sorted(olds.keys() | news.keys()):
            yield from _changes(olds.get(key, _ABSENT), news.get(key, _ABSENT), f"{name}.{key}")
    # A setting that is null is as one that an earlier version did not have.
    elif old != new and not (old in (None, _ABSENT) and new in (None, _ABSENT)):
        yield name, old, new


_ABSENT = object()


def _brief(value: object) -> str:
    text = "(absent)" if value is _ABSENT else canonical_json(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
