"""Is all there that a recipe names? Looked at before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from solon.artifact import need_file
from solon.config import Recipe
from solon.constitution import Constitution
from solon.engine import FolderEngineConfig, RayEngineConfig, VLLMEngineConfig, without_ray
from solon.errors import InputError
from solon.feedback import read_planted


def preflight(recipe: Recipe) -> None:
    """See that all that the recipe names is there, before a model is loaded.

    Raises InputError that lists every file and model folder that is missing, every mistake in the constitution, all
    that the stages want of it and it lacks, and every setting that a trainer refuses.
    """
    errors: list[InputError] = []
    files = [partial(need_file, path) for path in _files_of(recipe)]
    looks: list[Callable[[], object]] = [*files, *_models_of(recipe), partial(check_constitution, recipe)]
    if recipe.comparisons and recipe.comparisons.gate and recipe.comparisons.gate.pairs:
        looks.append(partial(read_planted, recipe.comparisons.gate.pairs))
    for look in looks:
        try:
            look()
        except InputError as error:
            errors.append(error)
    if recipe.supervised or recipe.preference or recipe.reinforcement:
        from solon.training import validate_trainers

        try:
            validate_trainers(recipe)
        except InputError as error:
            errors.append(error)
    if errors:
        raise InputError.all_of(errors)


def _files_of(recipe: Recipe) -> Iterator[Path]:
    named = [recipe.prompts.path, recipe.prompts.helpful_path]
    named += [recipe.preference.helpful] if recipe.preference else []
    named += [*recipe.evaluation.prompt_files, recipe.evaluation.helpful_prompts] if recipe.evaluation else []
    return (Path(name) for name in named if name not in (None, "sandbox", "oracle"))


def check_constitution(recipe: Recipe) -> None:
    """See that the constitution can be read and has all that the recipe's stages draw from it.

    Raises InputError that lists every mistake in it, or else all that it has too little of.
    """
    constitution = Constitution.load(recipe.constitution)
    errors: list[InputError] = []
    for setting, draw in _draws(recipe, constitution):
        try:
            draw()
        except InputError as error:
            errors.append(InputError(f"{setting}: {error.what}", remedy=error.remedy))
    if errors:
        raise InputError.all_of(errors)


def _draws(recipe: Recipe, constitution: Constitution) -> Iterator[tuple[str, Callable[[], object]]]:
    exemplars = partial(constitution.exemplars.draw, seed=recipe.seed)
    if revisions := recipe.revisions:
        yield "revisions", partial(constitution.serving, "revision")
        yield "revisions.few_shot", partial(exemplars, "revision", revisions.few_shot)
    if comparisons := recipe.comparisons:
        yield "comparisons.principles", partial(constitution.sample, "comparison", comparisons.principles, recipe.seed)
        kind = "reasoning" if comparisons.reasoning else "comparison"
        yield "comparisons.few_shot", partial(exemplars, kind, comparisons.few_shot)
    elif recipe.evaluation:
        yield "evaluation", partial(constitution.serving, "comparison")


def _models_of(recipe: Recipe) -> Iterator[Callable[[], object]]:
    from solon.engine.checkpoint import find_folder
    from solon.engine.vllm import find_program

    asked = [recipe.model]
    asked += [section.judge for section in (recipe.comparisons, recipe.evaluation) if section and section.judge]
    asked += recipe.evaluation.others.values() if recipe.evaluation else ()
    if any(isinstance(engine, RayEngineConfig) for engine in asked):
        from solon.engine.cluster import find_ray

        yield find_ray
    engines = [without_ray(engine) for engine in asked]
    paths = [engine.path for engine in engines if isinstance(engine, FolderEngineConfig)]
    paths += [recipe.supervised.pretrained] if recipe.supervised and recipe.supervised.pretrained else []
    paths += [recipe.preference.start] if recipe.preference and recipe.preference.start != "sl-cai" else []
    for path in dict.fromkeys(paths):
        yield lambda path=path: find_folder(path)
    for python in dict.fromkeys(engine.python for engine in engines if isinstance(engine, VLLMEngineConfig)):
        yield lambda python=python: find_program(python)
