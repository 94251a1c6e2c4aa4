"""The whole method, top to bottom: a recipe in, a run folder out.

    await run_recipe(load_recipe("recipes/sandbox.yaml"), Path("runs/sandbox"))

Each step begins a stage folder with its settings and the hashes of what it reads. A finished stage is skipped, a
killed one goes on, one made from something else is refused. A recipe without a stage's section does not run that stage.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from solon.artifact import (
    STAGES,
    Progress,
    RunFolder,
    StageFolder,
    content_id,
    file_hash,
    read_rows,
    silent,
    write_json,
    write_rows,
)
from solon.config import Recipe, outcome_settings
from solon.constitution import Constitution
from solon.dialogue import PromptRow, read_hh, read_prompts
from solon.engine import Engine, EngineConfig, LocalEngineConfig, load_engine
from solon.errors import InputError
from solon.evaluation import ConstitutionJudge, Field, Score, evaluate, score_row
from solon.feedback import PairRow, compare, helpful_comparisons, sample_pairs
from solon.stats import Interval
from solon.supervised import revise, sample_helpful, sft, start_model

MADE_BY = {"sl-cai": "02-sl-cai", "rl-cai": "05-rl-cai"}
"""The stages that make the run's own models."""

HELPFUL_PER_RED_TEAM = 135_296 / 182_831
"""Comparisons of helpfulness for each red-team prompt, in the paper (section 4.2); the sandbox keeps the ratio."""


async def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    stages: Collection[str] | None = None,
    again: Collection[str] = (),
    progress: Progress = silent,
) -> None:
    """Run the recipe's stages, or those of `stages` alone, in `folder`; `again` names stages to start from nothing."""
    _known(stages or ())
    _known(again)
    run = Run(recipe=recipe, folder=RunFolder(folder), again=frozenset(again), progress=progress)
    with run.folder.held():
        if not (folder / "recipe.resolved.json").exists():
            run.describe()
        for name, section, step in (
            ("01-revisions", recipe.revisions, revisions),
            ("02-sl-cai", recipe.supervised, sl_cai),
            ("03-comparisons", recipe.pairs, comparisons),
            ("04-preference-model", recipe.preference, preference_model),
            ("05-rl-cai", recipe.reinforcement, rl_cai),
            ("06-evaluation", recipe.evaluation, evaluation),
            ("report", recipe, report),
        ):
            if section is not None and (stages is None or name in stages):
                await step(run)


# ---- the stages


async def revisions(run: Run) -> None:
    """The assistant answers red-team prompts, criticises and revises its answers under drawn principles."""
    stage = run.folder.stage("01-revisions")
    if run.begin(stage, run.recipe.revisions, model=run.recipe.model):
        write_rows(stage.path / "prompts.jsonl", run.prompts)
        async with opened(run.recipe.model) as engine:
            await revise(
                run.recipe,
                stage,
                constitution=run.constitution,
                engine=engine,
                prompts=run.red_team,
                progress=run.progress,
            )


async def sl_cai(run: Run) -> None:
    """A model is fine-tuned on the revisions and on helpful answers: SL-CAI."""
    stage, source = run.folder.stage("02-sl-cai"), run.made("01-revisions") / "revisions.jsonl"
    start = LocalEngineConfig(path=start_model(run.recipe))
    inputs = {source.name: file_hash(source)}
    if run.begin(stage, run.recipe.supervised, model=run.recipe.model, start=start, inputs=inputs):
        if run.helpful:
            async with opened(run.recipe.model) as engine:
                await sample_helpful(run.recipe, stage, engine=engine, prompts=run.helpful, progress=run.progress)
        train = partial(sft, run.recipe, stage, constitution=run.constitution, revisions=source, progress=run.progress)
        train()


async def comparisons(run: Run) -> None:
    """SL-CAI answers every prompt twice; a judge says which answer keeps a drawn principle better."""
    stage, recipe = run.folder.stage("03-comparisons"), run.recipe
    labelled_by_oracle = recipe.preference is not None and recipe.preference.helpful == "oracle"
    inputs = {"helpfulness": "oracle"} if labelled_by_oracle else {}
    if not run.begin(stage, recipe.pairs, recipe.comparisons, model=run.policy, judge=run.judge, inputs=inputs):
        return
    async with opened(run.policy) as engine:
        await sample_pairs(recipe, stage, engine=engine, prompts=run.red_team, progress=run.progress)
    pairs = cast(list[PairRow], list(read_rows(stage.path / "pairs.jsonl")))
    if labelled_by_oracle:
        from solon import sandbox
        from solon.sandbox import oracle

        num = round(HELPFUL_PER_RED_TEAM * len(run.red_team))
        found = helpful_comparisons(sandbox.helpful_pairs(num, seed=recipe.seed), oracle.prefers_helpful)
        write_rows(stage.path / "helpful-comparisons.jsonl", found.rows)
    if recipe.comparisons is None:
        stage.finish(counts={"pairs": len(pairs)})
        return
    async with opened(run.judge) as engine:
        await compare(
            recipe,
            stage,
            constitution=run.constitution,
            engine=engine,
            pairs=pairs,
            progress=run.progress,
        )


async def preference_model(run: Run) -> None:
    """The labels, and comparisons of helpfulness, train the preference model."""
    from solon.preference import train_preference
    from solon.training import RunContext

    settings = run.recipe.preference
    assert settings is not None
    rows: list[Mapping[str, Any]] = []
    if run.recipe.pairs is not None:
        folder = run.made("03-comparisons")
        for name in ("comparisons.jsonl", "helpful-comparisons.jsonl"):
            # Rows are saved as they are done; the order in which that was must not decide what is learnt.
            rows += sorted(_rows_if_any(folder / name), key=itemgetter("id"))
    if settings.helpful not in (None, "oracle"):
        rows += [{**row, "source": "helpful"} for row in read_hh(settings.helpful).rows]
    train_preference(
        rows,
        model=run.sl_cai if settings.start == "sl-cai" else settings.start,
        stage=run.folder.stage("04-preference-model"),
        config=settings,
        run=RunContext(
            seed=run.recipe.seed, again="04-preference-model" in run.again, facts=run.facts, progress=run.progress
        ),
    )


async def rl_cai(run: Run) -> None:
    """SL-CAI is trained against the preference model: RL-CAI."""
    from solon.reinforcement import train_rl
    from solon.training import RunContext

    settings = run.recipe.reinforcement
    assert settings is not None
    train_rl(
        {"all": run.prompts, "red-team": run.red_team, "helpful": run.helpful}[settings.prompts],
        model=run.sl_cai,
        preference_model=run.made("04-preference-model") / "model",
        stage=run.folder.stage("05-rl-cai"),
        config=settings,
        run=RunContext(seed=run.recipe.seed, again="05-rl-cai" in run.again, facts=run.facts, progress=run.progress),
    )


async def evaluation(run: Run) -> None:
    """Every model answers prompts that the method has not seen; an oracle, where there is one, and a judge say how
    well."""
    settings, stage = run.recipe.evaluation, run.folder.stage("06-evaluation")
    assert settings is not None
    models = run.models()
    for stage_name in (MADE_BY[name] for name in models if name in MADE_BY):
        run.made(stage_name)
    prompts = run.evaluation_prompts()
    inputs = {f"model {name}": _fingerprint(config) for name, config in models.items()}
    if not run.begin(
        stage,
        settings,
        run.recipe.comparisons,
        judge=run.evaluation_judge,
        inputs={**inputs, "prompts": content_id(prompts)},
    ):
        return
    knows_truth = settings.oracle == "auto" and run.recipe.prompts.path == "sandbox"
    async with opened(run.evaluation_judge) as engine:
        from solon.config import Comparisons
        from solon.sandbox import oracle

        judging = run.recipe.comparisons or Comparisons()
        await evaluate(
            stage,
            settings=settings,
            seed=run.recipe.seed,
            field=Field(
                models={name: partial(load_engine, config) for name, config in models.items()},
                prompts=prompts,
                oracle=oracle if knows_truth else None,
                judge=ConstitutionJudge(engine=engine, constitution=run.constitution, settings=judging),
            ),
            more=run.preference_scores(),
            progress=run.progress,
        )


async def report(run: Run) -> None:
    """One page of everything, from the run's files alone."""
    from solon.report import write_report

    # Again: every stage has by now accepted the recipe, which a refused one must not overwrite.
    run.describe()
    write_report(run.folder.path)


# ---- what the stages share


@dataclass(frozen=True)
class Run:
    """A recipe at work in its folder."""

    recipe: Recipe
    folder: RunFolder
    again: frozenset[str]
    progress: Progress

    @cached_property
    def constitution(self) -> Constitution:
        return Constitution.load(self.recipe.constitution)

    @cached_property
    def prompts(self) -> list[PromptRow]:
        """Red-team prompts, then helpful ones."""
        wanted = self.recipe.prompts
        if wanted.path == "sandbox":
            from solon import sandbox

            def rows(kind: Any, limit: int | None) -> list[PromptRow]:
                num = 400 if limit is None else limit
                return cast(list[PromptRow], sandbox.prompts("method", kind, num, seed=self.recipe.seed))

            return [*rows("red-team", wanted.limit), *rows("helpful", wanted.helpful_limit)]
        found = read_prompts(wanted.path, limit=wanted.limit).rows
        if wanted.helpful_path is not None:
            found = [*found, *read_prompts(wanted.helpful_path, limit=wanted.helpful_limit, kind="helpful").rows]
        return found

    @cached_property
    def red_team(self) -> list[PromptRow]:
        return [row for row in self.prompts if row["kind"] == "red-team"]

    @cached_property
    def helpful(self) -> list[PromptRow]:
        return [row for row in self.prompts if row["kind"] == "helpful"]

    @property
    def sl_cai(self) -> Path:
        return self.made("02-sl-cai") / "model"

    def made(self, name: str) -> Path:
        """The folder of an earlier stage. Raises InputError while it is not finished: half its rows are no input."""
        stage = self.folder.stage(name)
        if not stage.finished:
            raise InputError(f"{name} is not finished", path=stage.path, remedy="run the earlier stages too")
        return stage.path

    @property
    def policy(self) -> EngineConfig:
        """Who answers twice: SL-CAI, or the assistant where none is trained."""
        return self.recipe.model if self.recipe.supervised is None else _beside(self.recipe.model, self.sl_cai)

    @property
    def judge(self) -> EngineConfig:
        settings = self.recipe.comparisons
        return (settings and settings.judge) or self.recipe.model

    @property
    def evaluation_judge(self) -> EngineConfig:
        settings = self.recipe.evaluation
        return (settings and settings.judge) or self.judge

    @property
    def facts(self) -> dict[str, object]:
        """What the model cards say about the run."""
        return {"constitution": self.constitution.name, "constitution fingerprint": self.constitution.fingerprint}

    def describe(self) -> None:
        """Write what was asked for beside what comes of it: the resolved recipe and the constitution."""
        write_json(self.folder.path / "recipe.resolved.json", self.recipe.resolved())
        (self.folder.path / "constitution.yaml").write_text(self.constitution.to_yaml(), encoding="utf-8")

    def begin(
        self,
        stage: StageFolder,
        *settings: BaseModel | None,
        inputs: dict[str, str] | None = None,
        **models: EngineConfig,
    ) -> bool:
        """Begin a stage with its settings, the run's seed, its constitution and prompts, and the hashes of what it
        reads."""
        config = {
            type(section).__name__.lower(): outcome_settings(section) for section in settings if section is not None
        }
        hashes = {"constitution": self.constitution.fingerprint, "prompts": content_id(self.prompts), **(inputs or {})}
        hashes |= {name: _fingerprint(model) for name, model in models.items()}
        return stage.begin(config={"seed": self.recipe.seed, **config}, inputs=hashes, again=stage.name in self.again)

    def models(self) -> dict[str, EngineConfig]:
        """The models of the run by the names of scores.json: those asked for, or all there are."""
        recipe = self.recipe
        found: dict[str, EngineConfig] = {"helpful": recipe.model}
        if recipe.supervised is not None:
            if recipe.supervised.pretrained is not None:
                found = {"base": _beside(recipe.model, recipe.supervised.pretrained), **found}
            found["sl-cai"] = _beside(recipe.model, self.folder.stage(MADE_BY["sl-cai"]).path / "model")
        if recipe.reinforcement is not None:
            found["rl-cai"] = _beside(recipe.model, self.folder.stage(MADE_BY["rl-cai"]).path / "model")
        wanted = recipe.evaluation.models if recipe.evaluation else None
        return {name: config for name, config in found.items() if wanted is None or name in wanted}

    def evaluation_prompts(self) -> list[PromptRow]:
        """Prompts that the method has not used: the sandbox's evaluation split, or the files that the recipe names."""
        settings = self.recipe.evaluation
        assert settings is not None
        if self.recipe.prompts.path == "sandbox" and settings.prompts is None:
            from solon import sandbox

            kinds = ("red-team", "helpful", "look-alike")
            return [
                cast(PromptRow, row)
                for kind in kinds
                for row in sandbox.prompts("evaluation", kind, settings.samples, seed=self.recipe.seed)
            ]
        rows: list[PromptRow] = []
        if settings.prompts is not None:
            rows += read_prompts(settings.prompts, limit=settings.samples).rows
        if settings.helpful_prompts is not None:
            rows += read_prompts(settings.helpful_prompts, limit=settings.samples, kind="helpful").rows
        return rows

    def preference_scores(self) -> list[Score]:
        """What the preference model's stage measured on the comparisons that it held out, for scores.json."""
        stage = self.folder.stage("04-preference-model")
        if not stage.finished:
            return []
        measured = stage.manifest()["measured"]
        found = {
            "pm_accuracy" if source == "all" else f"pm_accuracy:{source}": Interval(**share)
            for source, share in measured["accuracy"].items()
        }
        if measured["calibration_error"] is not None:
            found["calibration_error"] = Interval(**measured["calibration_error"])
        return [
            score_row("preference-model", metric=name, interval=interval, seed=self.recipe.seed)
            for name, interval in found.items()
        ]


@asynccontextmanager
async def opened(config: EngineConfig) -> AsyncGenerator[Engine]:
    """The engine, closed at the end whatever happens."""
    engine = await load_engine(config)
    try:
        yield engine
    finally:
        await engine.aclose()


def _beside(config: EngineConfig, path: str | Path) -> LocalEngineConfig:
    """A local model run as the assistant is (device, batch), or with the defaults where that one is on a server."""
    if isinstance(config, LocalEngineConfig):
        return config.model_copy(update={"path": str(path)})
    return LocalEngineConfig(path=str(path))


def _fingerprint(config: EngineConfig) -> str:
    """The hash of a local model's files, or the name of a server's model."""
    if isinstance(config, LocalEngineConfig):
        from solon.training import resolve_model

        return file_hash(resolve_model(config.path))
    return config.model


def _known(stages: Collection[str]) -> None:
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise InputError(f"no stage is called {', '.join(map(repr, unknown))}", remedy=f"one of {', '.join(STAGES)}")


def _rows_if_any(path: Path) -> Iterable[dict[str, Any]]:
    return read_rows(path) if path.exists() else ()
