"""What the report shows, read from a run's files; nothing here knows HTML."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, cast

from solon.artifact import RunFolder, read_json
from solon.constitution import Constitution
from solon.evaluation import (
    MENDING_FILE,
    BattleRow,
    MendingRow,
    ResponseRow,
    ResultsTable,
    Score,
    Telling,
    VerdictRow,
    WinTable,
    results_table,
    telling_dialogues,
    win_tables,
)
from solon.report.browser import (
    STAGE_WORDS,
    VERDICT_WORDS,
    Part,
    answers_part,
    comparisons_part,
    failures_part,
    mending_part,
    revisions_part,
    rollouts_part,
    rows_of,
)
from solon.report.principles import (
    Conflicts,
    PrincipleStory,
    changed_by_round,
    conflicts_of,
    principle_stories,
    shares,
)
from solon.stats import Interval

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStory:
    """What one stage did, from its manifest."""

    name: str
    title: str
    status: str
    seconds: float
    counts: Mapping[str, int | float]
    failures: Mapping[str, int]
    alarms: Sequence[str] = ()
    """What was said of over-optimisation: step, cause and numbers."""
    gate: str = ""
    """How the judge did on pairs with known answers, where it was tried."""
    doubts: Sequence[str] = ()
    """Why it should not have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that the page shows."""

    name: str
    facts: Mapping[str, str]
    constitution: Constitution | None
    table: ResultsTable
    wins: Sequence[WinTable]
    scores: Sequence[Score]
    telling: Sequence[Telling]
    stages: Sequence[StageStory]
    curves: Sequence[Mapping[str, Any]]
    bins: Sequence[Mapping[str, Any]]
    """Of the preference model's calibration."""
    scaled_bins: Sequence[Mapping[str, Any]]
    """Of the same, scaled by its temperature; empty where none was fitted."""
    principles: Mapping[str, PrincipleStory] = field(default_factory=dict[str, PrincipleStory])
    """By the principle's id."""
    conflicts: Conflicts | None = None
    """None where no revision was judged under the principles."""
    rounds: Sequence[Interval] = ()
    """Share of the revisions of each round that changed the answer."""
    parts: Sequence[Part] = field(default_factory=list[Part])


def read_run(path: str | Path) -> Run:
    """Read a run folder, finished or not: what a stage has not written is left out. Raises InputError for a broken
    file."""
    path = Path(path)
    stages = RunFolder(path).stages()
    manifests = {stage.name: _json(stage.path / "manifest.json", {}) for stage in stages}
    labels = [stage.path for stage in stages if stage.path.name == "03-comparisons"]
    recipe = _json(path / "recipe.resolved.json", {})
    constitution = Constitution.load(path / "constitution.yaml") if (path / "constitution.yaml").is_file() else None
    evaluation = path / "06-evaluation"
    scores = cast("list[Score]", _json(evaluation / "scores.json", []))
    responses = cast("list[ResponseRow]", list(rows_of(evaluation / "responses.jsonl")))
    verdicts = {row["id"]: cast("VerdictRow", row) for row in rows_of(evaluation / "verdicts.jsonl")}
    battles = cast("list[BattleRow]", list(rows_of(evaluation / "battles.jsonl")))
    mending = cast("list[MendingRow]", list(rows_of(evaluation / MENDING_FILE)))
    models = {row["model"] for row in responses}
    after = next((name for name in ("rl-cai", "sl-cai") if name in models), "rl-cai")
    judged: list[_Row] = []
    chains = rows_of(path / "01-revisions" / "revisions.jsonl")
    changed, by_round = changed_by_round(_noting(chains, ids={row["prompt_id"] for row in mending}, noted=judged))
    measured: _Row = {}
    for stage in stages:
        if stage.path.name == "04-preference-model":
            measured = manifests[stage.name].get("measured", measured)
    calibration, scaled = (cast(_Row, measured.get(name) or {}) for name in ("reliability", "reliability_scaled"))
    return Run(
        name=str(recipe.get("name") or path.name),
        facts=_facts(path, recipe=recipe, constitution=constitution, manifests=manifests),
        constitution=constitution,
        table=results_table(scores),
        wins=win_tables(scores),
        scores=scores,
        telling=telling_dialogues(responses, verdicts=verdicts, battles=battles, after=after),
        stages=[_story(name, manifest, run=path) for name, manifest in manifests.items() if manifest],
        curves=_one_after_another(stage.path / "metrics.jsonl" for stage in stages if stage.path.name == "05-rl-cai"),
        bins=calibration.get("bins", []),
        scaled_bins=scaled.get("bins", []),
        principles=principle_stories(
            changed,
            comparisons=chain.from_iterable(rows_of(folder / "comparisons.jsonl") for folder in labels),
            battles=battles,
            scores=scores,
            before="helpful",
            after=after,
        ),
        conflicts=conflicts_of(mending, scores=scores, failures=rows_of(evaluation / "failures.jsonl")),
        rounds=shares(by_round),
        parts=[
            part
            for part in (
                revisions_part(path / "01-revisions"),
                mending_part(evaluation, mending, chains=judged),
                *(comparisons_part(folder, run=path) for folder in labels),
                *(rollouts_part(stage.path, run=path) for stage in stages if stage.path.name == "05-rl-cai"),
                answers_part(evaluation, responses=responses, verdicts=verdicts, battles=battles),
                failures_part(path),
            )
            if part.total
        ],
    )


def _json(path: Path, default: Any) -> Any:
    return read_json(path) if path.is_file() else default


def _one_after_another(files: Iterable[Path]) -> list[_Row]:
    """The rows of several trainings, the steps of a later one counted on from those before it."""
    rows: list[_Row] = []
    for file in files:
        before = rows[-1]["step"] if rows else 0
        rows += [{**row, "step": before + row["step"]} for row in rows_of(file)]
    return rows


def _noting(rows: Iterable[_Row], *, ids: Collection[str], noted: list[_Row]) -> Iterator[_Row]:
    """The rows; those with one of `ids` are put into `noted` on the way: a long file is read once."""
    for row in rows:
        if row["id"] in ids:
            noted.append(row)
        yield row


def _facts(
    path: Path, *, recipe: Mapping[str, Any], constitution: Constitution | None, manifests: Mapping[str, _Row]
) -> dict[str, str]:
    written = [path / name / "manifest.json" for name, manifest in manifests.items() if manifest]
    last = max(written, key=lambda file: file.stat().st_mtime, default=None)
    about = manifests[str(last.parent.relative_to(path))] if last else {}
    model: _Row = recipe.get("model", {})
    packages: _Row = about.get("packages", {})
    facts = {
        "recipe": str(recipe.get("name", "")),
        "model": str(model.get("path") or model.get("model") or ""),
        "constitution": "" if constitution is None else f"{constitution.name}, version {constitution.version}",
        "fingerprint": "" if constitution is None else constitution.fingerprint,
        "seed": str(recipe.get("seed", "")),
        "date": "" if last is None else f"{datetime.fromtimestamp(last.stat().st_mtime, tz=UTC):%Y-%m-%d %H:%M} UTC",
        "time spent": duration(sum(manifest.get("seconds", 0) for manifest in manifests.values())),
        "solon": str(about.get("solon", "")),
        "python": str(about.get("python", "")),
        **{name: str(version) for name, version in packages.items()},
    }
    return {name: value for name, value in facts.items() if value}


def _story(name: str, manifest: Mapping[str, Any], *, run: Path) -> StageStory:
    counts = cast("Mapping[str, Any]", manifest.get("counts", {}))
    if not counts.get("verdicts_read") and not counts.get("verdicts_unread"):
        counts = {name: n for name, n in counts.items() if not name.startswith("verdicts_")}
    gate: _Row | str = manifest.get("gate") or {}
    kept = [f"Stopped; the model is that of {manifest['kept']}."] if "kept" in manifest else []
    alarms = [f"Step {row['step']}, {row['cause']}: {row['text']}." for row in rows_of(run / name / "alarms.jsonl")]
    later, _, own = name.rpartition("/")
    return StageStory(
        name=name,
        title=STAGE_WORDS[own] + (f", {later.replace('-', ' ')}" if later else ""),
        status=manifest["status"],
        seconds=manifest.get("seconds", 0.0),
        counts={_count_words(key): value for key, value in counts.items() if isinstance(value, int | float)},
        failures=manifest.get("failures", {}),
        alarms=[*alarms, *kept],
        gate=_gate_words(gate) if gate else "",
        doubts=() if isinstance(gate, str) else gate.get("problems", ()),
    )


_COUNT_WORDS: Mapping[str, str] = {
    "a_chosen": "first answer of the pair preferred",
    "over_long": "too long to train on",
    "helpful": "rows: helpful answers",
    "truncated_left_out": "cut answers, left out",
    "truncated_texts": "texts cut at the token limit",
    "trained_rows": "rows trained on",
    "trained_pairs": "pairs trained on",
    "trained_prompts": "prompts trained on",
    "held_out_pairs": "pairs held out",
}


def _count_words(name: str) -> str:
    """What a count of a manifest is called on the page."""
    if name.startswith("verdict "):
        verdict = name.removeprefix("verdict ")
        return f"verdict: {VERDICT_WORDS.get(verdict, verdict)}"
    if name.startswith("revision-"):
        return f"rows: revisions of round {name.removeprefix('revision-')}"
    return _COUNT_WORDS.get(name, name.replace("_", " "))


def _gate_words(gate: Mapping[str, Any] | str) -> str:
    if isinstance(gate, str):
        return gate
    accuracy = gate["accuracy"]
    found = f"{accuracy['value']:.2f} ({accuracy['low']:.2f} to {accuracy['high']:.2f}), n = {accuracy['n']}"
    asked_all_the_same = gate["thresholds"]["on_failure"] == "warn"
    failed = "failed, asked all the same" if asked_all_the_same else "failed, not asked"
    return f"{'passed' if gate['passed'] else failed}; accuracy {found}"


def duration(seconds: float) -> str:
    """ "48 s", "5 min 12 s" or "2 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
