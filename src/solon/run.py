"""A recipe at work in its folder: what its stages share.

run = Run(recipe=recipe, folder=RunFolder(Path("runs/sandbox")))
run.prompts, run.constitution, run.judge        # read once, when they are first asked for
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic import BaseModel

from solon.artifact import (
    Progress,
    RowStore,
    RunFolder,
    StageFolder,
    content_id,
    derive_seed,
    file_hash,
    read_json,
    silent,
    stage_of,
    write_json,
)
from solon.config import Comparisons, Gate, Recipe, outcome_settings
from solon.constitution import Constitution
from solon.dialogue import PromptRow, each_prompt, focused, read_prompts
from solon.engine import (
    Engine,
    EngineConfig,
    FolderEngineConfig,
    LocalEngineConfig,
    RayEngineConfig,
    load_engine,
    without_ray,
)
from solon.errors import InputError
from solon.evaluation import Score, score_row
from solon.stats import Interval

if TYPE_CHECKING:
    pass

SECTIONS = {
    "01-revisions": ("revisions",),
    "02-sl-cai": ("supervised",),
    "03-comparisons": ("pairs", "comparisons"),
    "04-preference-model": ("preference",),
    "05-rl-cai": ("reinforcement",),
    "06-evaluation": ("evaluation",),
}
"""A stage -> the sections of the recipe that are its own."""


class _Stored(NamedTuple):
    """The prompts of a run."""

    rows: RowStore
    red_team: array[int]
    """Their places in `rows`."""
    helpful: array[int]


@dataclass(frozen=True)
class Run:
    """A recipe at work in its folder."""

    recipe: Recipe
    folder: RunFolder
    again: frozenset[str] = frozenset()
    """Stages to start from nothing: in all iterations, or as `stage_of` calls them in one."""
    progress: Progress = silent
    stages: frozenset[str] | None = None
    """Those that are run; None: all."""
    iteration: int = 1
    """Of reinforcement: which labels, preference model and policy are meant."""

    def at(self, iteration: int) -> Run:
        """The same run in another iteration of reinforcement; what has been read already is not read again."""
        if iteration == self.iteration:
            return self
        other = replace(self, iteration=iteration)
        other.__dict__.update(
            {name: self.__dict__[name] for name in ("constitution", "_stored") if name in self.__dict__}
        )
        return other

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage, in this iteration."""
        return self.folder.stage(name, iteration=self.iteration)

    def is_again(self, name: str) -> bool:
        """Whether a stage is to be started from nothing in this iteration."""
        return name in self.again or stage_of(name, iteration=self.iteration) in self.again

    @property
    def reseeded(self) -> Recipe:
        """The recipe with a seed for what this iteration draws anew."""
        seed = derive_seed(self.recipe.seed, "iteration", self.iteration)
        return self.recipe if self.iteration == 1 else self.recipe.model_copy(update={"seed": seed})

    @cached_property
    def constitution(self) -> Constitution:
        return Constitution.load(self.recipe.constitution)

    @cached_property
    def prompts(self) -> Sequence[PromptRow]:
        """Red-team prompts, then helpful ones."""
        return cast("Sequence[PromptRow]", self._stored.rows)

    @cached_property
    def red_team(self) -> Sequence[PromptRow]:
        return cast("Sequence[PromptRow]", self._stored.rows.at(self._stored.red_team))

    @cached_property
    def helpful(self) -> Sequence[PromptRow]:
        return cast("Sequence[PromptRow]", self._stored.rows.at(self._stored.helpful))

    @cached_property
    def _stored(self) -> _Stored:
        red_team, helpful = array("Q"), array("Q")

        def each() -> Iterator[PromptRow]:
            for place, row in enumerate(self._each_prompt()):
                (red_team if row["kind"] == "red-team" else helpful).append(place)
                yield row

        return _Stored(RowStore(each()), red_team, helpful)

    def _each_prompt(self) -> Iterator[PromptRow]:
        wanted = self.recipe.prompts
        if wanted.path == "sandbox":
            from solon import sandbox

            def rows(kind: Any, limit: int | None, focus: Sequence[str] = ()) -> list[PromptRow]:
                num = 400 if limit is None else limit
                return cast(list[PromptRow], sandbox.prompts("method", kind, num, seed=self.recipe.seed, focus=focus))

            yield from rows("red-team", wanted.limit, wanted.focus)
            yield from rows("helpful", wanted.helpful_limit)
            return
        if wanted.focus:
            found = read_prompts(wanted.path).rows
            yield from focused([row for row in found if row["kind"] == "red-team"], wanted.focus, limit=wanted.limit)
            yield from (row for row in found if row["kind"] != "red-team")
        else:
            yield from each_prompt(wanted.path, limit=wanted.limit)
        if wanted.helpful_path is not None:
            yield from each_prompt(wanted.helpful_path, limit=wanted.helpful_limit, kind="helpful")

    @property
    def sl_cai(self) -> Path:
        return self.made("02-sl-cai") / "model"

    def made(self, name: str) -> Path:
        """The folder of an earlier stage. Raises InputError while it is not finished: half its rows are no input."""
        stage = self.stage(name)
        if not stage.finished:
            raise InputError(f"{name} is not finished", path=stage.path, remedy="run the earlier stages too")
        return stage.path

    @property
    def logs(self) -> Path:
        """The folder for what servers print that are started for this run."""
        return self.folder.path / "logs"

    def opened(self, config: EngineConfig) -> AbstractAsyncContextManager[Engine]:
        """An engine of this run, closed at the end whatever happens."""
        return opened(config, logs=self.logs)

    @property
    def policy(self) -> EngineConfig:
        """Who answers twice: SL-CAI, or the assistant where none is trained; later the policy so far."""
        if self.iteration > 1:
            return _beside(self.recipe.model, self.before)
        return self.recipe.model if self.recipe.supervised is None else _beside(self.recipe.model, self.sl_cai)

    @property
    def before(self) -> Path:
        """The policy of the iteration before."""
        return self.at(self.iteration - 1).made("05-rl-cai") / "model"

    @property
    def start(self) -> Path:
        """What reinforcement trains."""
        settings = self.recipe.reinforcement
        goes_on = settings is not None and settings.iterate_from == "policy" and self.iteration > 1
        return self.before if goes_on else self.sl_cai

    @property
    def iterations(self) -> Iterator[Run]:
        """The run in each of its iterations."""
        settings = self.recipe.reinforcement
        return (self.at(number) for number in range(1, (settings.iterations if settings else 1) + 1))

    @property
    def policies(self) -> dict[str, Run]:
        """The names of the run's RL-CAI models -> the iterations that make them; the last is rl-cai."""
        if self.recipe.reinforcement is None:
            return {}
        *earlier, last = self.iterations
        return {**{f"rl-cai-{run.iteration}": run for run in earlier}, "rl-cai": last}

    @property
    def judge(self) -> EngineConfig:
        settings = self.recipe.comparisons
        return (settings and settings.judge) or self.recipe.model

    @property
    def evaluation_judge(self) -> EngineConfig:
        settings = self.recipe.evaluation
        return (settings and settings.judge) or self.judge

    @property
    def judging(self) -> Comparisons:
        """How the evaluation's judge is asked."""
        return self.recipe.comparisons or Comparisons()

    @property
    def evaluation_gate(self) -> Gate | None:
        """The gate that the evaluation's judge must pass; None where there is none, it passed that of the labels, or it
        compares nothing."""
        recipe, settings = self.recipe, self.recipe.evaluation
        compares = settings is not None and (settings.battles or (settings.revisions and recipe.revisions))
        labels = recipe.comparisons is not None and recipe.pairs is not None
        passed = labels and self.evaluation_judge == self.judge
        return self.judging.gate if compares and not passed else None

    @property
    def facts(self) -> dict[str, object]:
        """What the model cards say about the run."""
        return {"constitution": self.constitution.name, "constitution fingerprint": self.constitution.fingerprint}

    def describe(self) -> None:
        """Write what was asked for beside what comes of it: the resolved recipe and the constitution.

        Where some stages alone are run, what the others were made with stays as it stands there.
        """
        file, constitution = self.folder.path / "recipe.resolved.json", self.folder.path / "constitution.yaml"
        resolved = self.recipe.resolved()
        if self.stages is not None and file.is_file():
            names = {name for stage in self.stages for name in SECTIONS.get(stage.rpartition("/")[2], ())}
            resolved = {**read_json(file), **{name: resolved[name] for name in names}}
        write_json(file, resolved)
        if self.stages is None or not constitution.is_file():
            constitution.write_text(self.constitution.to_yaml(), encoding="utf-8")

    def begin(
        self,
        stage: StageFolder,
        *settings: BaseModel | None,
        inputs: dict[str, str] | None = None,
        **models: EngineConfig,
    ) -> bool:
        """Begin a stage with its settings, the run's seed, its constitution and prompts, and the hashes of what it
        reads; of each model both its files' and how it is asked."""
        config = {
            type(section).__name__.lower(): outcome_settings(section) for section in settings if section is not None
        }
        config |= {name: settings_of(model) for name, model in models.items()}
        prompts = self._stored.rows.content_id
        hashes = {"constitution": self.constitution.fingerprint, "prompts": prompts, **(inputs or {})}
        hashes |= {name: fingerprint(model) for name, model in models.items()}
        return stage.begin(
            config={"seed": self.reseeded.seed, **config}, inputs=hashes, again=self.is_again(stage.path.name)
        )

    def models(self) -> dict[str, EngineConfig]:
        """The models of the run by the names of scores.json: those asked for, or all there are."""
        recipe = self.recipe
        found: dict[str, EngineConfig] = {"helpful": recipe.model}
        if recipe.supervised is not None:
            if recipe.supervised.pretrained is not None:
                found = {"base": _beside(recipe.model, recipe.supervised.pretrained), **found}
            found["sl-cai"] = _beside(recipe.model, self.stage("02-sl-cai").path / "model")
        for name, run in self.policies.items():
            found[name] = _beside(recipe.model, run.stage("05-rl-cai").path / "model")
        wanted, others = (recipe.evaluation.models, recipe.evaluation.others) if recipe.evaluation else (None, {})
        asked = set(found) if wanted is None else {*wanted, *(self.policies if "rl-cai" in wanted else ())}
        return {**{name: config for name, config in found.items() if name in asked}, **others}

    @property
    def knows_truth(self) -> bool:
        """Whether the sandbox's oracle judges the answers of the evaluation: the prompts are the sandbox's."""
        settings = self.recipe.evaluation
        assert settings is not None
        return settings.oracle == "auto" and self.recipe.prompts.path == "sandbox" and settings.prompts is None

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
        for path in settings.prompt_files:
            rows += read_prompts(path, limit=settings.samples).rows
        if settings.helpful_prompts is not None:
            rows += read_prompts(settings.helpful_prompts, limit=settings.samples, kind="helpful").rows
        # A prompt of several files is asked once.
        return list({content_id(row["prompt"]): row for row in reversed(rows)}.values())[::-1]

    def preference_scores(self) -> list[Score]:
        """What the preference model's stage measured on the comparisons that it held out, for scores.json."""
        *_, last = self.iterations
        stage = last.stage("04-preference-model")
        if not stage.finished:
            return []
        measured = stage.manifest()["measured"]
        found = {
            "pm_accuracy" if source == "all" else f"pm_accuracy:{source}": Interval(**share)
            for source, share in measured["accuracy"].items()
        }
        for name in ("calibration_error", "calibration_error_scaled"):
            if measured.get(name) is not None:
                found[name] = Interval(**measured[name])
        return [
            score_row("preference-model", metric=name, interval=interval, way="held-out labels", seed=self.recipe.seed)
            for name, interval in found.items()
        ]


@asynccontextmanager
async def opened(config: EngineConfig, *, logs: Path | None = None) -> AsyncGenerator[Engine]:
    """The engine, closed at the end whatever happens; see `load_engine`."""
    engine = await load_engine(config, logs=logs)
    try:
        yield engine
    finally:
        await engine.aclose()


def _beside(config: EngineConfig, path: str | Path) -> EngineConfig:
    """A model run as the assistant is (device, batch, vLLM, Ray), or locally where that one is on a server."""
    if isinstance(config, RayEngineConfig) and isinstance(config.engine, FolderEngineConfig):
        return config.model_copy(update={"engine": _beside(config.engine, path)})
    if isinstance(config, FolderEngineConfig):
        return config.model_copy(update={"path": str(path)})
    return LocalEngineConfig(path=str(path))


def settings_of(config: EngineConfig) -> dict[str, object]:
    """How a model is asked, as far as it decides what comes out: template, precision, endpoint. See `fingerprint`."""
    return {name: value for name, value in outcome_settings(config).items() if name not in ("path", "model")}


def fingerprint(config: EngineConfig) -> str:
    """The hash of the files of a model in a folder, or the name of a server's model."""
    config = without_ray(config)
    if isinstance(config, FolderEngineConfig):
        from solon.training import resolve_model

        return file_hash(resolve_model(config.path))
    return config.model
