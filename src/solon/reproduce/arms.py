"""Training an arm: the recipe with the arm's changes, stages that it shares with the method, RLHF from people's labels.

    at = ArmContext(out=Path("runs/reproduce"), arms=read_arms(), seed=0, sizes=sizes_of([]))
    folder = await make_arm("hh-rlhf", at=at, size=at.largest)        # a run folder: OUT/seed-0/small/hh-rlhf

A shared stage is a link to the first arm's folder of it. Finished stages are not run again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from solon import sandbox
from solon.artifact import (
    Progress,
    RunFolder,
    StageFolder,
    content_id,
    derive_seed,
    file_hash,
    read_rows,
    silent,
    write_rows,
)
from solon.config import Recipe, load_recipe, shipped_recipe
from solon.constitution import Constitution
from solon.errors import InputError
from solon.feedback import FeedbackRow, helpful_comparisons, num_helpful
from solon.pipeline import run_recipe
from solon.reproduce.description import Arm, Arms, Crowd, StageName
from solon.run import Run
from solon.sandbox import oracle

SHIPPED = "small"
"""The size of the models that come with solon, as `python -m solon.sandbox.pretrain --size` calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The sandbox's two models, of one size."""

    name: str
    base: str
    """Pretrained: a folder, or "sandbox:base"."""
    helpful: str
    """The helpful-only assistant."""
    millions: float
    """Parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmContext:
    """Where an experiment's arms are made, for one seed."""

    out: Path
    arms: Arms
    seed: int
    sizes: Sequence[ModelSize]
    """By rising number of parameters."""
    quick: bool = False
    """The least that runs; what is measured means nothing."""
    progress: Progress = silent
    made: set[Path] = field(default_factory=set[Path])
    """Stages that have been seen to be finished, with these settings."""

    @property
    def folder(self) -> Path:
        return self.out / f"seed-{self.seed}"

    @property
    def largest(self) -> ModelSize:
        return self.sizes[-1]

    def arm_folder(self, name: str, size: ModelSize) -> Path:
        return self.folder / size.name / name

    def num(self, wanted: int) -> int:
        """How many answers, pairs or dialogues are measured where `wanted` are asked for."""
        return min(wanted, self.arms.quick_samples) if self.quick else wanted


def sizes_of(folders: Sequence[Path]) -> list[ModelSize]:
    """The models that ship, and those of each folder that `python -m solon.sandbox.pretrain --out` made, by size.

    Raises InputError for a folder without both models, and for two folders of one name.
    """
    from solon.training import resolve_model

    places = {SHIPPED: (f"{sandbox.PREFIX}base", f"{sandbox.PREFIX}helpful")}
    for folder in folders:
        if folder.name in places:
            raise InputError(f"two sizes would be called {folder.name!r}", path=folder, remedy="rename the folder")
        places[folder.name] = (str(folder / "base"), str(folder / "helpful"))
    found: list[ModelSize] = []
    for name, (base, helpful) in places.items():
        resolve_model(helpful)
        found.append(ModelSize(name=name, base=base, helpful=helpful, millions=_millions(resolve_model(base))))
    return sorted(found, key=lambda one: one.millions)


def _millions(model: Path) -> float:
    from safetensors import safe_open

    count = 0
    for file in model.glob("*.safetensors"):
        with cast(Any, safe_open)(file, framework="np") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in list(weights.keys()))
    return round(count / 1e6, 3)


def recipe_of(name: str, *, at: ArmContext, size: ModelSize) -> Recipe:
    """The recipe of an arm; one with principles of its own gets a constitution file in `at.folder`."""
    arm = at.arms.arms[name]
    changes = [f"seed={at.seed}", f"name={name}", "model.path={helpful}", "comparisons.judge.path={base}"]
    changes += [*arm.set, *(at.arms.quick if at.quick else ())]
    filled = [text.replace("{helpful}", size.helpful).replace("{base}", size.base) for text in changes]
    recipe = load_recipe(shipped_recipe(at.arms.recipe), filled)
    if arm.principles is None and arm.principle is None:
        return recipe
    file = at.folder / "constitutions" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_fewer(Constitution.load(recipe.constitution), arm=arm, seed=at.seed).to_yaml(), encoding="utf-8")
    return recipe.model_copy(update={"constitution": str(file)})


def _fewer(whole: Constitution, *, arm: Arm, seed: int) -> Constitution:
    """The arm's principles alone; of two numbers drawn with one seed the smaller is part of the greater."""
    if arm.principle is not None:
        kept = [one for one in whole.principles if one.id == arm.principle]
    else:
        assert arm.principles is not None
        kept = list(whole.sample("revision", arm.principles, derive_seed(seed, "principles")))
    assert kept, f"the constitution has no principle {arm.principle!r}"
    return whole.model_copy(update={"principles": tuple(kept)})


# ---- making


async def make_arm(name: str, *, at: ArmContext, size: ModelSize, last: StageName = "05-rl-cai") -> Path:
    """The run folder of an arm that is finished up to the stage `last`; what is not there is made.

    Raises StageChanged where a stage has been made with other settings.
    """
    arm, folder = at.arms.arms[name], at.arm_folder(name, size)
    stages: list[StageName] = [stage for stage in arm.stages if stage <= last]
    if all((folder / stage) in at.made for stage in stages):
        return folder
    if arm.shares:
        _share(arm, source=await make_arm(at.arms.first, at=at, size=size, last=max(arm.shares)), folder=folder)
    recipe = recipe_of(name, at=at, size=size)
    if arm.people:
        _rlhf(arm, recipe=recipe, folder=RunFolder(folder), stages=stages, size=size, progress=at.progress)
    else:
        await run_recipe(recipe, folder, stages=stages, progress=at.progress)
    at.made.update(folder / stage for stage in stages)
    return folder


async def preference_model(name: str, *, at: ArmContext, size: ModelSize) -> Path:
    """The folder of an arm's preference model."""
    folder = await make_arm(name, at=at, size=size, last="04-preference-model")
    return folder / "04-preference-model" / "model"


def _share(arm: Arm, *, source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stage in arm.shares:
        link = folder / stage
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(source / stage, folder), target_is_directory=True)


def _rlhf(
    arm: Arm, *, recipe: Recipe, folder: RunFolder, stages: Sequence[StageName], size: ModelSize, progress: Progress
) -> None:
    """A preference model of people's comparisons, and a policy trained against it from the pretrained model, on the
    same prompts as the method's (arXiv:2212.08073, section 4.2)."""
    from solon.preference import train_preference
    from solon.reinforcement import train_rl
    from solon.training import RunContext

    run, context = Run(recipe=recipe, folder=folder), RunContext(seed=recipe.seed, progress=progress)
    assert recipe.preference is not None and recipe.reinforcement is not None
    with folder.held():
        run.describe()
        num = len(run.red_team) * (recipe.pairs.per_prompt if recipe.pairs else 1)
        rows = people_compare(arm.people, stage=folder.stage("03-comparisons"), num=num, seed=recipe.seed)
        stage = folder.stage("04-preference-model")
        trained = train_preference(rows, model=size.base, stage=stage, config=recipe.preference, run=context)
        if "05-rl-cai" in stages:
            train_rl(
                list(run.prompts),
                model=size.base,
                preference_model=trained.model,
                stage=folder.stage("05-rl-cai"),
                config=recipe.reinforcement,
                run=context,
            )


def people_compare(crowds: Sequence[Crowd], *, stage: StageFolder, num: int, seed: int) -> list[FeedbackRow]:
    """Comparisons of each crowd by the oracle, in CROWD-comparisons.jsonl; `source` is the crowd.

    `num` pairs of answers to harmful requests, and as many of helpfulness as the method has for so many prompts. Who
    looks for harm likes an answer that says nothing best: these people's comparisons made evasive models
    (arXiv:2212.08073, section 4.4).
    """
    counts = {"helpful": num_helpful(num), "harmless": num}
    files = {crowd: stage.path / f"{crowd}-comparisons.jsonl" for crowd in crowds}
    if stage.begin(config={"seed": seed, "people": {crowd: counts[crowd] for crowd in crowds}}, inputs={}):
        for crowd, file in files.items():
            helpful = crowd == "helpful"
            pairs = (sandbox.helpful_pairs if helpful else sandbox.harmful_pairs)(counts[crowd], seed=seed)
            prefers: Callable[..., float] = oracle.prefers_helpful if helpful else _evasive
            found = helpful_comparisons(pairs, prefers)
            write_rows(file, [{**row, "source": crowd} for row in found.rows])
        stage.finish(counts={crowd: sum(1 for _ in read_rows(file)) for crowd, file in files.items()})
    return [cast(FeedbackRow, row) for file in files.values() for row in read_rows(file)]


def _evasive(prompt: Sequence[Any], a: str, b: str) -> float:
    return oracle.prefers_harmless(prompt, a, b, evasive=True)


# ---- what came of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A model of an arm, at one step of reinforcement."""

    series: str
    """The arm's name."""
    x: float | None
    model: Path


def snapshots(name: str, *, folder: Path, start: Path) -> list[Policy]:
    """The policies along an arm's reinforcement: where it started (x = 0), its snapshots, its end."""
    stage = folder / "05-rl-cai"
    steps = {int(path.name.removeprefix("step-")): path for path in (stage / "snapshots").glob("step-*")}
    last = max((row["step"] for row in read_rows(stage / "metrics.jsonl") if "step" in row), default=0)
    models = {0: start, **dict(sorted(steps.items())), max(last, *steps, 1): stage / "model"}
    return [Policy(series=name, x=float(step), model=model) for step, model in models.items()]


def start_of(name: str, *, at: ArmContext, size: ModelSize) -> Path:
    """The model that an arm's reinforcement starts from: SL-CAI, or the pretrained one."""
    from solon.training import resolve_model

    if at.arms.arms[name].people:
        return resolve_model(size.base)
    return at.arm_folder(name, size) / "02-sl-cai" / "model"


def inputs_of(sizes: Sequence[ModelSize]) -> str:
    """A hash of the models that the arms are made of."""
    from solon.training import resolve_model

    return content_id(
        [(one.name, *(file_hash(resolve_model(path)) for path in (one.base, one.helpful))) for one in sizes]
    )
