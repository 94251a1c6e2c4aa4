"""Cards of a run's models and data sets, in the form of the Hugging Face Hub, from its manifests alone.

    write_cards("runs/demo")        # -> [runs/demo/report/cards/sl-cai.md, ..., comparisons.md]

Each is the README.md under which the model folder or the rows can be published: what it was made from, by which recipe,
under which constitution, by which judge, with which results, what differs from the paper, and how many labels of people
are in it. They stand beside the report and not in the model folders: a model's identity is a hash of its whole folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from solon.artifact import RunFolder, StageFolder, read_json
from solon.config import Recipe
from solon.constitution import Constitution
from solon.evaluation import Score, score_cell


class _Kind(NamedTuple):
    name: str
    title: str
    about: str


_MODELS: Mapping[str, _Kind] = {
    "02-sl-cai": _Kind(
        "sl-cai", "SL-CAI", "fine-tuned on answers that a model criticised and revised under a constitution"
    ),
    "04-preference-model": _Kind(
        "preference-model", "Preference model", "scores a reply to a dialogue; trained on comparisons of two answers"
    ),
    "05-rl-cai": _Kind("rl-cai", "RL-CAI", "trained by reinforcement from AI feedback under a constitution"),
}
_DATA: Mapping[str, Sequence[_Kind]] = {
    "01-revisions": [
        _Kind(
            "revisions", "Critiques and revisions", "answers to red-team prompts, criticised and revised round by round"
        )
    ],
    "02-sl-cai": [_Kind("sft", "SL-CAI: training rows", "prompts with the answers that SL-CAI was fine-tuned on")],
    "03-comparisons": [
        _Kind("comparisons", "AI feedback", "pairs of answers with the probability that a judge gave the better one"),
        _Kind("helpful-comparisons", "Comparisons of helpfulness", "pairs of answers to harmless prompts"),
    ],
}
"""The files of rows by stage, each NAME.jsonl."""


def write_cards(run: str | Path) -> list[Path]:
    """Write `run`/report/cards/*.md, one for every model and every file of rows that the run has finished."""
    run = Path(run)
    found = _Found.read(run)
    folder = run / "report" / "cards"
    folder.mkdir(parents=True, exist_ok=True)
    cards: list[Path] = []
    for stage in found.stages:
        for name, text in (*_model_cards(stage, found), *_data_cards(stage, found)):
            cards.append(folder / f"{name}.md")
            cards[-1].write_text(text, encoding="utf-8", errors="backslashreplace")
    return cards


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a run says of itself."""

    recipe: Recipe | None
    """None where a single stage was run on files, or an earlier version wrote it."""
    constitution: Constitution | None
    scores: Sequence[Score]
    stages: Sequence[StageFolder]
    """The finished ones."""

    @classmethod
    def read(cls, run: Path) -> _Found:
        written, scores = run / "recipe.resolved.json", run / "06-evaluation" / "scores.json"
        constitution = run / "constitution.yaml"
        try:
            recipe = Recipe.model_validate(read_json(written)) if written.is_file() else None
        except ValidationError:
            recipe = None
        return cls(
            recipe=recipe,
            constitution=Constitution.load(constitution) if constitution.is_file() else None,
            scores=cast("list[Score]", read_json(scores)) if scores.is_file() else [],
            stages=[stage for stage in RunFolder(run).stages() if stage.finished],
        )


def _model_cards(stage: StageFolder, found: _Found) -> Iterator[tuple[str, str]]:
    kind = _MODELS.get(stage.path.name)
    if kind is None:
        return
    last = [one for one in found.stages if one.path.name == stage.path.name][-1]
    # As in scores.json: the last iteration's has the plain name.
    number = stage.name.rpartition("/")[0].rpartition("-")[2] or "1"
    name = kind.name if stage.name == last.name else f"{kind.name}-{number}"
    facts = {"trained from": _trained_from(stage, found), **_made_by(stage, found), **_labellers(stage, found)}
    results = [row for row in found.scores if row["model"] == name and ":" not in row["metric"]]
    front = "---\nlibrary_name: transformers\ntags: [solon, constitutional-ai]\n---"
    yield name, _card(front, kind, facts=facts, results=results, recipe=found.recipe)


def _data_cards(stage: StageFolder, found: _Found) -> Iterator[tuple[str, str]]:
    for kind in _DATA.get(stage.path.name, ()):
        file = stage.path / f"{kind.name}.jsonl"
        if file.is_file():
            failures: Mapping[str, int] = stage.manifest().get("failures", {})
            facts = {
                "file": f"{stage.name}/{file.name}",
                **_made_by(stage, found),
                "unscored or failed": ", ".join(f"{reason} {n:,}" for reason, n in failures.items()) or 0,
                **_labellers(stage, found),
            }
            configs = f"configs:\n- config_name: default\n  data_files: {file.name}"
            name = "-".join(part for part in (kind.name, stage.name.rpartition("/")[0]) if part)
            front = f"---\ntags: [solon, constitutional-ai]\n{configs}\n---"
            yield name, _card(front, kind, facts=facts, results=(), recipe=found.recipe)


def _card(
    front: str, kind: _Kind, *, facts: Mapping[str, object], results: Sequence[Score], recipe: Recipe | None
) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items() if value not in (None, "")]
    parts = [front, f"# {kind.title}", f"Made with solon: {kind.about}.", "\n".join(["| | |", "|---|---|", *lines])]
    if results:
        heads = ["| metric | value | 95 % interval | n | told by |", "|---|---|---|---|---|"]
        parts += ["## Results", "\n".join([*heads, *map(_result, results)])]
    if recipe is not None:
        notes = [f"- {_cell(note)}" for note in deviations(recipe)]
        what = (
            "Constitutional AI is Bai et al. 2022, arXiv:2212.08073. What every run of solon does otherwise is in its"
        )
        parts += ["## Differences from the paper", f"{what} docs/paper.md; this recipe, with the numbers there:"]
        parts.append("\n".join(notes) or "Nothing.")
    return "\n\n".join(parts) + "\n"


def _result(row: Score) -> str:
    cell = score_cell(row)
    share = row["metric"].startswith("elo_") or (row["low"] >= 0 and row["high"] <= 1)
    value, interval = (cell.value, cell.interval) if share else (f"{row['value']:.3f}", _limits(row))
    return f"| {' | '.join(map(_cell, (row['metric'], value, interval, row['n'], row.get('way', ''))))} |"


def _limits(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"


def _trained_from(stage: StageFolder, found: _Found) -> str:
    recipe = found.recipe
    start = {"02-sl-cai": "", "04-preference-model": "SL-CAI", "05-rl-cai": "SL-CAI"}[stage.path.name]
    if recipe is not None and recipe.supervised and stage.path.name == "02-sl-cai":
        start = recipe.supervised.pretrained if recipe.supervised.start == "pretrained" else _asked(recipe.model)
    if recipe is not None and recipe.preference and stage.path.name == "04-preference-model":
        start = "SL-CAI" if recipe.preference.start == "sl-cai" else recipe.preference.start
    if recipe is not None and recipe.reinforcement and "/" in stage.name and stage.path.name == "05-rl-cai":
        start = "SL-CAI" if recipe.reinforcement.iterate_from == "sl-cai" else "the RL-CAI of the iteration before"
    inputs: Mapping[str, str] = stage.manifest().get("inputs", {})
    return f"{start} (sha256 of the folder {inputs.get('start') or inputs.get('model')})"


def _made_by(stage: StageFolder, found: _Found) -> dict[str, object]:
    manifest, recipe, constitution = stage.manifest(), found.recipe, found.constitution
    counts: Mapping[str, object] = manifest.get("counts", {})
    packages: Mapping[str, str] = manifest.get("packages", {})
    return {
        "counts": ", ".join(f"{name} {n:,}" if isinstance(n, int) else f"{name} {n}" for name, n in counts.items()),
        "recipe": f"{recipe.name}, seed {recipe.seed}" if recipe else None,
        "assistant": _asked(recipe.model) if recipe else None,
        "prompts": recipe.prompts.path if recipe else None,
        "constitution": f"{constitution.name}, version {constitution.version}" if constitution else None,
        "its fingerprint": constitution.fingerprint if constitution else None,
        "its licence": constitution.licence if constitution else None,
        "made by": f"solon {manifest.get('solon', '')}, Python {manifest.get('python', '')}, "
        + ", ".join(f"{name} {version}" for name, version in packages.items()),
    }


def _labellers(stage: StageFolder, found: _Found) -> dict[str, object]:
    """Who labelled: the judge with its accuracy at the gate, and how many labels are people's."""
    if stage.path.name not in ("03-comparisons", "04-preference-model", "05-rl-cai"):
        return {"labels of people": 0}
    about: dict[str, object] = {}
    manifest = next((one.manifest() for one in found.stages if one.path.name == "03-comparisons"), None)
    if manifest is not None:
        gate: object = manifest.get("gate")
        engine: Mapping[str, object] = manifest.get("engine") or {}
        about = {"judge": engine.get("model"), "how it was asked": manifest.get("way"), "its gate": gate}
        if isinstance(gate, dict):
            accuracy = cast("dict[str, Any]", gate)["accuracy"]
            about["its gate"] = f"accuracy {accuracy['value']:.3f} ({_limits(accuracy)}), n = {accuracy['n']}"
    about["labels of people: harmlessness"] = 0
    helpful = found.recipe.preference.helpful if found.recipe and found.recipe.preference else None
    said = {None: 0, "oracle": "0; an oracle of the sandbox compares in their place"}
    return {**about, "labels of people: helpfulness": said.get(helpful, f"the comparisons of {helpful}")}


def _asked(config: object) -> str:
    """A model folder, or what a server calls its model."""
    inner = getattr(config, "engine", config)
    return str(getattr(inner, "path", None) or getattr(inner, "model", ""))


def deviations(recipe: Recipe) -> list[str]:
    """What this recipe does otherwise than the paper; numbers in brackets are those of docs/paper.md."""
    return [text for differs, text in _differences(recipe) if differs]


def _differences(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    stages = ("revisions", "supervised", "comparisons", "preference", "reinforcement")
    missing = [name for name in stages if getattr(recipe, name) is None]
    yield bool(missing), f"without {', '.join(missing)} (1)"
    if revisions := recipe.revisions:
        yield not revisions.critique, "answers are revised without a critique (section 3.5)"
        yield revisions.rounds != 4, f"revised {revisions.rounds} times, not 4"
        temperature = revisions.sampling.temperature
        yield temperature != 1, f"revisions are drawn at temperature {temperature:g} (22)"
    if supervised := recipe.supervised:
        yield supervised.start == "assistant", "SL-CAI starts from the assistant (22)"
    if pairs := recipe.pairs:
        yield pairs.per_prompt != 1, f"{pairs.per_prompt} pairs a prompt (22)"
    if comparisons := recipe.comparisons:
        yield comparisons.principles != 1, f"{comparisons.principles} principles a pair, averaged (8)"
        yield comparisons.layout == "principle-last", "the principle stands after the two answers (8)"
        yield comparisons.gate is None, "the judge had to pass no gate"
    if preference := recipe.preference:
        yield preference.labels != "soft", f"{preference.labels} labels (23)"
        yield preference.helpful is None, "no comparisons of helpfulness (10)"
        yield preference.helpful == "oracle", "an oracle compares helpfulness in people's place (10)"
    if reinforcement := recipe.reinforcement:
        kind = reinforcement.algorithm.kind
        yield kind != "ppo", f"{kind.upper()} in place of PPO (13)"
        yield reinforcement.reward == "judge", "the judge's comparisons are the reward (13)"
        yield kind != "dpo" and reinforcement.truncation_penalty > 0, "an answer that is cut loses score (16)"
        yield reinforcement.iterations > 1, f"trained {reinforcement.iterations} times, labels renewed (section 6.1)"
        yield reinforcement.target_kl is not None, "the weight of the KL is moved to hold a target (24)"


def _cell(value: object) -> str:
    """A value as the text of a cell: one line that ends no cell and begins no tag."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())
