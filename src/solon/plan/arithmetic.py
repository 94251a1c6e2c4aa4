"""The work of a recipe, stage by stage: how many requests, how many tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from solon.artifact import read_rows
from solon.config import Gate, Recipe
from solon.evaluation import DESCRIPTIONS, num_planted
from solon.evaluation.choice import SAMPLES
from solon.feedback import PRIOR_PAIRS, num_helpful, shipped_planted
from solon.run import Run

if TYPE_CHECKING:
    from transformers import TrainingArguments

REASONING_TOKENS = 256
"""Of a chain of thought: the limit in `solon.feedback`."""
VERDICT_TOKENS = 8
"""Of a sampled verdict, about."""
Who = Literal["model", "judge", "evaluation judge"]
Kind = Literal["sft", "reward", "ppo", "rloo", "grpo", "dpo"]
"""Of a trainer."""


# ---- types


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One kind of work of a stage."""

    stage: str
    what: str
    who: Who = "model"
    """Whose speed counts; models that are trained are as fast as the assistant that they stem from."""
    requests: float = 0
    prompt_tokens: float = 0
    """Read: by the model that answers, and by those that score an answer in training."""
    completion_tokens: float = 0
    """Written."""
    training_tokens: float = 0
    """Read forwards and backwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many prompts, and mean lengths in tokens."""

    num_red_team: int
    num_helpful: int
    prompt: float
    """A prompt, with what the template puts around it."""
    longest_prompt: float
    """Of those that were counted; what memory has to suffice for."""
    answer: float
    """An answer, a critique, a revision."""
    critique_request: float
    revision_request: float
    question: float
    """What a comparison reads beside the prompt and the two answers."""
    revision_examples: float
    """Few-shot exemplars of a revision."""
    comparison_examples: float


# ---- arithmetic


def steps(recipe: Recipe, run: Run, sizes: Sizes, *, sampled: Collection[Who] = ()) -> list[Step]:
    """The work of every stage that the recipe has; `sampled`: judges without log-probabilities."""
    return [
        *_revising(recipe, sizes),
        *_fine_tuning(recipe, sizes),
        *_iterated(recipe, sizes, sampled="judge" in sampled),
        *_evaluating(recipe, run, sizes, sampled="evaluation judge" in sampled),
    ]


def _iterated(recipe: Recipe, sizes: Sizes, *, sampled: bool) -> Iterator[Step]:
    """The stages of all iterations; a later one trains on the labels of those before it too."""
    every: list[list[Step]] = []
    for iteration in range(1, (recipe.reinforcement.iterations if recipe.reinforcement else 1) + 1):
        compared = _comparing(recipe, sizes, sampled=sampled)
        preferred = _preferring(recipe, sizes, iteration=iteration)
        every.append([*compared, *preferred, *_reinforcing(recipe, sizes, iteration=iteration, sampled=sampled)])
    return map(_sum, zip(*every, strict=True))


def _sum(steps: Sequence[Step]) -> Step:
    """The same kind of work, done several times."""
    return replace(
        steps[0],
        requests=sum(step.requests for step in steps),
        prompt_tokens=sum(step.prompt_tokens for step in steps),
        completion_tokens=sum(step.completion_tokens for step in steps),
        training_tokens=sum(step.training_tokens for step in steps),
    )


def _revising(recipe: Recipe, sizes: Sizes) -> Iterator[Step]:
    settings, stage = recipe.revisions, "01-revisions"
    if settings is None:
        return
    n, rounds, shown = sizes.num_red_team, settings.rounds, sizes.prompt + sizes.revision_examples + sizes.answer
    yield _asked(stage, "answers", n, reads=sizes.prompt, writes=sizes.answer)
    revised = shown + sizes.revision_request
    if settings.critique:
        criticised = shown + sizes.critique_request
        yield _asked(stage, "critiques", n * rounds, reads=criticised, writes=sizes.answer)
        revised = criticised + sizes.answer + sizes.revision_request
    yield _asked(stage, "revisions", n * rounds, reads=revised, writes=sizes.answer)


def _fine_tuning(recipe: Recipe, sizes: Sizes) -> Iterator[Step]:
    settings, stage = recipe.supervised, "02-sl-cai"
    if settings is None or recipe.revisions is None:
        return
    helpful = sizes.num_helpful * settings.helpful_samples
    if helpful:
        yield _asked(stage, "helpful answers", helpful, reads=sizes.prompt, writes=sizes.answer)
    rows = sizes.num_red_team * recipe.revisions.rounds + helpful
    used = _rows_used(recipe, "sft", settings.trainer, rows=rows)
    yield Step(stage=stage, what="fine-tuning", training_tokens=used * (sizes.prompt + sizes.answer))


def _comparing(recipe: Recipe, sizes: Sizes, *, sampled: bool) -> Iterator[Step]:
    settings, pairs, stage = recipe.comparisons, recipe.pairs, "03-comparisons"
    if pairs is None:
        return
    num_pairs = sizes.num_red_team * pairs.per_prompt
    yield _asked(stage, "pairs", 2 * num_pairs, reads=sizes.prompt, writes=sizes.answer)
    if settings is None:
        return
    yield from _questions(recipe, sizes, stage=stage, pairs=num_pairs, sampled=sampled)


def _questions(recipe: Recipe, sizes: Sizes, *, stage: str, pairs: float, sampled: bool) -> Iterator[Step]:
    """What the judge is asked about `pairs` pairs of answers, and about the gate's before them."""
    settings = recipe.comparisons
    assert settings is not None
    questions = 2 * settings.principles * pairs
    if settings.gate is not None:
        questions += 2 * _num_planted(recipe, settings.gate)
    questions *= settings.reasoning_samples
    reads = sizes.prompt + 2 * sizes.answer + sizes.question + sizes.comparison_examples
    if settings.reasoning:
        yield _asked(stage, "reasoning", questions, reads=reads, writes=REASONING_TOKENS, who="judge")
        reads += REASONING_TOKENS
    yield _judged(stage, questions, reads=reads, who="judge", verdicts=settings.verdicts if sampled else None)


def _num_planted(recipe: Recipe, gate: Gate) -> int:
    """Planted pairs that are compared, and those whose better answer is compared with itself; the constitution's own
    exemplars may be a few more."""
    if gate.pairs is not None:
        num = min(gate.num, _num_lines(Path(gate.pairs)))
    else:
        num = gate.num if recipe.prompts.path == "sandbox" else min(gate.num, len(shipped_planted()))
    return num + min(num, PRIOR_PAIRS)


def _preferring(recipe: Recipe, sizes: Sizes, *, iteration: int) -> Iterator[Step]:
    settings = recipe.preference
    if settings is None:
        return
    pairs = _num_labelled(recipe, sizes, iteration=iteration)
    used = _rows_used(recipe, "reward", settings.trainer, rows=round(pairs * (1 - settings.holdout)))
    yield Step(
        stage="04-preference-model",
        what="training",
        training_tokens=2 * used * (sizes.prompt + sizes.answer),
        prompt_tokens=4 * pairs * settings.holdout * (sizes.prompt + sizes.answer),
    )


def _num_labelled(recipe: Recipe, sizes: Sizes, *, iteration: int) -> int:
    """Comparisons that the run has made and read by this iteration."""
    pairs, helpful = 0, recipe.preference.helpful if recipe.preference else None
    if recipe.pairs is not None:
        made = recipe.pairs.per_prompt * sizes.num_red_team
        pairs = made * (recipe.comparisons is not None) + num_helpful(made) * (helpful == "oracle")
    return iteration * pairs + (0 if helpful in (None, "oracle") else _num_lines(Path(helpful)))


def _reinforcing(recipe: Recipe, sizes: Sizes, *, iteration: int, sampled: bool) -> Iterator[Step]:
    settings, stage = recipe.reinforcement, "05-rl-cai"
    if settings is None:
        return
    if settings.algorithm.kind == "dpo":
        num = _num_labelled(recipe, sizes, iteration=iteration)
        used, tokens = _rows_used(recipe, "dpo", settings.trainer, rows=num), sizes.prompt + sizes.answer
        yield Step(
            stage=stage,
            what="reference, training",
            prompt_tokens=2 * num * tokens,
            training_tokens=2 * used * tokens,
        )
        return
    prompts = {"red-team": sizes.num_red_team, "helpful": sizes.num_helpful}
    num = prompts.get(settings.prompts, sum(prompts.values()))
    group = settings.algorithm.num_generations
    used = _rows_used(recipe, settings.algorithm.kind, settings.trainer, rows=num * group)
    rollouts = used / int(settings.trainer.get("num_iterations", 1))
    answer = min(sizes.answer, settings.max_new_tokens)
    yield _asked(stage, "rollouts", rollouts, reads=sizes.prompt, writes=answer)
    judged, critic = settings.reward == "judge", settings.algorithm.kind == "ppo"
    if judged and recipe.comparisons is not None:
        meetings = rollouts if group > 2 else rollouts / 2
        judging = replace(sizes, answer=answer)
        yield from _questions(recipe, judging, stage=stage, pairs=meetings, sampled=sampled)
    yield Step(
        stage=stage,
        what="reference, training" if judged else "scores, reference, training",
        prompt_tokens=(3 - judged + critic) * rollouts * (sizes.prompt + answer),
        training_tokens=(1 + critic) * used * (sizes.prompt + answer),
    )


def _evaluating(recipe: Recipe, run: Run, sizes: Sizes, *, sampled: bool) -> Iterator[Step]:
    settings, stage = recipe.evaluation, "06-evaluation"
    if settings is None:
        return
    prompts, models = run.evaluation_prompts(), len(run.models())
    answer = min(sizes.answer, settings.sampling.max_new_tokens)
    yield _asked(stage, "answers", models * len(prompts), reads=sizes.prompt, writes=answer)
    if settings.verdicts and not run.knows_truth:
        asked = len(DESCRIPTIONS) * (models * len(prompts) + num_planted())
        reads = sizes.prompt + answer + sizes.question
        yield _judged(stage, asked, reads=reads, who="evaluation judge", verdicts=SAMPLES if sampled else None)
    if settings.harmfulness:
        asked = 2 * models * sum(row["kind"] == "red-team" for row in prompts)
        reads = sizes.prompt + answer + sizes.question
        yield _judged(stage, asked, reads=reads, who="evaluation judge", verdicts=SAMPLES if sampled else None)
    judging = run.judging
    meetings = len(list(combinations(range(models), 2)))
    fought = [min(settings.battles, sum(row["kind"] == kind for row in prompts)) for kind in ("red-team", "helpful")]
    revised = min(settings.revisions, recipe.revisions.rounds * sizes.num_red_team) if recipe.revisions else 0
    judgements = meetings * sum(fought) + revised * len(run.constitution.serving("comparison"))
    if run.evaluation_gate is not None:
        judgements += _num_planted(recipe, run.evaluation_gate)
    questions = 2 * judgements * judging.reasoning_samples
    reads = sizes.prompt + 2 * answer + sizes.question
    if judging.reasoning:
        yield _asked(stage, "reasoning", questions, reads=reads, writes=REASONING_TOKENS, who="evaluation judge")
        reads += REASONING_TOKENS
    yield _judged(stage, questions, reads=reads, who="evaluation judge", verdicts=judging.verdicts if sampled else None)


def _asked(stage: str, what: str, n: float, *, reads: float, writes: float, who: Who = "model") -> Step:
    return Step(stage=stage, what=what, who=who, requests=n, prompt_tokens=n * reads, completion_tokens=n * writes)


def _judged(stage: str, n: float, *, reads: float, who: Who, verdicts: int | None) -> Step:
    """Questions answered by log-probabilities, or by `verdicts` sampled texts each."""
    if verdicts is None:
        return Step(stage=stage, what="comparisons", who=who, requests=n, prompt_tokens=n * reads)
    return _asked(stage, "comparisons, by sampled verdicts", n * verdicts, reads=reads, writes=VERDICT_TOKENS, who=who)


def trainer_arguments(recipe: Recipe, kind: Kind, trainer: Mapping[str, Any]) -> TrainingArguments:
    """What TRL makes of the settings of a stage."""
    from solon.training import algorithm_settings, trainer_config

    policy = None if kind in ("sft", "reward") else recipe.reinforcement
    fixed = {} if policy is None else algorithm_settings(policy)
    return trainer_config(kind, trainer, folder=Path("runs") / recipe.name, seed=recipe.seed, fixed=fixed)


def _rows_used(recipe: Recipe, kind: Kind, trainer: Mapping[str, Any], *, rows: int) -> float:
    """Rows that training goes through in all processes, with repetition."""
    from solon.training import of_all_processes

    arguments = trainer_arguments(recipe, kind, of_all_processes(trainer, recipe.launch))
    if arguments.max_steps > 0:
        return arguments.max_steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return arguments.num_train_epochs * rows


def _num_lines(path: Path) -> int:
    return sum(1 for _ in read_rows(path))
