"""What a recipe takes before anything is spent: requests, tokens and seconds of every stage.

    found = await plan(load_recipe("recipes/sandbox.yaml"))
    found.total.seconds

Counts are the recipe's arithmetic on the prompts that it names. Tokens are counted on a sample of the prompts with the
model's own tokenizer; time follows from how fast the models read and write in a probe of a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from solon.artifact import RunFolder, silent
from solon.config import Recipe
from solon.constitution import Constitution
from solon.dialogue import Message, PromptRow, render_transcript
from solon.engine import Engine, EngineConfig, LocalEngineConfig, Request, Sampling
from solon.errors import EngineError, InputError
from solon.feedback import comparison_prompt, question_of
from solon.pipeline import Run, opened

SAMPLE = 200
"""Prompts whose tokens are counted, at most."""
PROBE_PROMPTS = 32
"""Prompts that a model answers in the probe, at most."""
PROBE_S = 4.0
"""Seconds that the answers of the probe may take, about."""
TRAINING_FACTOR = 3
"""A token trained on costs a forward and a backward pass: three times what reading it costs (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1)."""
REASONING_TOKENS = 256
"""Of a chain of thought: the limit in `solon.feedback`."""
CHARACTERS_PER_TOKEN = 4
"""Where there is no tokenizer to count with."""
Who = Literal["model", "judge", "evaluation judge"]


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
class PlanRow:
    """A Step with its price."""

    stage: str
    what: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    training_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes."""

    rows: tuple[PlanRow, ...]
    assumptions: str
    """What the numbers rest on, in a sentence or two."""

    @property
    def total(self) -> PlanRow:
        """The sum of the rows."""
        return PlanRow(
            stage="total",
            what="",
            requests=sum(row.requests for row in self.rows),
            prompt_tokens=sum(row.prompt_tokens for row in self.rows),
            completion_tokens=sum(row.completion_tokens for row in self.rows),
            training_tokens=sum(row.training_tokens for row in self.rows),
            seconds=sum(row.seconds for row in self.rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a probe saw of a model."""

    reads: float
    """Tokens per second."""
    writes: float
    """Tokens per second, over requests side by side."""
    answer: float
    """Tokens of an answer, on average."""

    """Whether tokens were counted by the model's own tokenizer."""
    chooses: bool = True
    """Whether it gives log-probabilities, so that verdicts need not be sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many prompts, and mean lengths in tokens."""

    num_red_team: int
    num_helpful: int
    prompt: float
    """A prompt, with what the template puts around it."""
    answer: float
    """An answer, a critique, a revision."""
    critique_request: float
    revision_request: float
    question: float
    """What a comparison reads beside the prompt and the two answers."""
    revision_examples: float
    """Few-shot exemplars of a revision."""
    comparison_examples: float


# ---- before anything is run


def preflight(recipe: Recipe) -> None:
    """See that all that the recipe names is there, before a model is loaded.

    Raises InputError that lists every file and model folder that is missing, every mistake in the constitution and
    every setting that a trainer refuses.
    """
    errors: list[InputError] = []
    for path in _files_of(recipe):
        if not path.is_file():
            errors.append(InputError("there is no such file", path=path, remedy="check the path"))
    for look in (*_models_of(recipe), lambda: Constitution.load(recipe.constitution)):
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
    named += [recipe.evaluation.prompts, recipe.evaluation.helpful_prompts] if recipe.evaluation else []
    return (Path(name) for name in named if name not in (None, "sandbox", "oracle"))


def _models_of(recipe: Recipe) -> Iterator[Callable[[], object]]:
    from solon.engine.checkpoint import find_folder

    engines = [recipe.model]
    engines += [section.judge for section in (recipe.comparisons, recipe.evaluation) if section and section.judge]
    paths = [engine.path for engine in engines if isinstance(engine, LocalEngineConfig)]
    paths += [recipe.supervised.pretrained] if recipe.supervised and recipe.supervised.pretrained else []
    paths += [recipe.preference.start] if recipe.preference and recipe.preference.start != "sl-cai" else []
    for path in dict.fromkeys(paths):
        yield lambda path=path: find_folder(path)


# ---- arithmetic


def steps(recipe: Recipe, run: Run, sizes: Sizes, *, chooses: Mapping[Who, bool]) -> list[Step]:
    """The work of every stage that the recipe has; `chooses` says which judges give log-probabilities."""
    return [
        *_revising(recipe, sizes),
        *_fine_tuning(recipe, sizes),
        *_comparing(recipe, sizes, chooses=chooses["judge"]),
        *_preferring(recipe, sizes),
        *_reinforcing(recipe, sizes),
        *_evaluating(recipe, run, sizes, chooses=chooses["evaluation judge"]),
    ]


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


def _comparing(recipe: Recipe, sizes: Sizes, *, chooses: bool) -> Iterator[Step]:
    settings, sampled, stage = recipe.comparisons, recipe.pairs, "03-comparisons"
    if sampled is None:
        return
    by_oracle = recipe.preference is not None and recipe.preference.helpful == "oracle"
    prompts = sizes.num_red_team + (sizes.num_helpful if by_oracle else 0)
    yield _asked(stage, "pairs", 2 * prompts * sampled.per_prompt, reads=sizes.prompt, writes=sizes.answer)
    if settings is None:
        return
    questions = 2 * settings.principles * sizes.num_red_team * sampled.per_prompt
    reads = sizes.prompt + 2 * sizes.answer + sizes.question + sizes.comparison_examples
    if settings.reasoning:
        yield _asked(stage, "reasoning", questions, reads=reads, writes=REASONING_TOKENS, who="judge")
        reads += REASONING_TOKENS
    yield _judged(stage, questions, reads=reads, who="judge", verdicts=None if chooses else settings.verdicts)


def _preferring(recipe: Recipe, sizes: Sizes) -> Iterator[Step]:
    settings = recipe.preference
    if settings is None:
        return
    pairs = 0
    if recipe.pairs is not None:
        pairs = recipe.pairs.per_prompt * sizes.num_red_team * (recipe.comparisons is not None)
        pairs += recipe.pairs.per_prompt * sizes.num_helpful * (settings.helpful == "oracle")
    if settings.helpful not in (None, "oracle"):
        pairs += _num_lines(Path(settings.helpful))
    used = _rows_used(recipe, "reward", settings.trainer, rows=round(pairs * (1 - settings.holdout)))
    yield Step(
        stage="04-preference-model",
        what="training",
        training_tokens=2 * used * (sizes.prompt + sizes.answer),
        prompt_tokens=4 * pairs * settings.holdout * (sizes.prompt + sizes.answer),
    )


def _reinforcing(recipe: Recipe, sizes: Sizes) -> Iterator[Step]:
    settings, stage = recipe.reinforcement, "05-rl-cai"
    if settings is None:
        return
    prompts = {"red-team": sizes.num_red_team, "helpful": sizes.num_helpful}
    num = prompts.get(settings.prompts, sum(prompts.values()))
    group = settings.algorithm.num_generations
    used = _rows_used(recipe, "rloo", settings.trainer, rows=num * group)
    rollouts = used / int(settings.trainer.get("num_iterations", 1))
    answer = min(sizes.answer, settings.max_new_tokens)
    yield _asked(stage, "rollouts", rollouts, reads=sizes.prompt, writes=answer)
    yield Step(
        stage=stage,
        what="scores, reference, training",
        prompt_tokens=3 * rollouts * (sizes.prompt + answer),
        training_tokens=used * (sizes.prompt + answer),
    )


def _evaluating(recipe: Recipe, run: Run, sizes: Sizes, *, chooses: bool) -> Iterator[Step]:
    settings, stage = recipe.evaluation, "06-evaluation"
    if settings is None:
        return
    prompts, models = run.evaluation_prompts(), len(run.models())
    answer = min(sizes.answer, settings.sampling.max_new_tokens)
    yield _asked(stage, "answers", models * len(prompts), reads=sizes.prompt, writes=answer)
    meetings = len(list(combinations(range(models), 2)))
    fought = [min(settings.battles, sum(row["kind"] == kind for row in prompts)) for kind in ("red-team", "helpful")]
    verdicts = recipe.comparisons.verdicts if recipe.comparisons else 8
    reads = sizes.prompt + 2 * answer + sizes.question
    yield _judged(
        stage,
        2 * meetings * sum(fought),
        reads=reads,
        who="evaluation judge",
        verdicts=None if chooses else verdicts,
    )


def _asked(stage: str, what: str, n: float, *, reads: float, writes: float, who: Who = "model") -> Step:
    return Step(stage=stage, what=what, who=who, requests=n, prompt_tokens=n * reads, completion_tokens=n * writes)


def _judged(stage: str, n: float, *, reads: float, who: Who, verdicts: int | None) -> Step:
    """Questions answered by log-probabilities, or by `verdicts` sampled texts each."""
    if verdicts is None:
        return Step(stage=stage, what="comparisons", who=who, requests=n, prompt_tokens=n * reads)
    return _asked(stage, "comparisons, by sampled verdicts", n * verdicts, reads=reads, writes=8, who=who)


def _rows_used(
    recipe: Recipe, kind: Literal["sft", "reward", "rloo"], trainer: Mapping[str, Any], *, rows: int
) -> float:
    """Rows that training goes through, with repetition: what TRL makes of the settings."""
    from solon.training import rloo_settings, trainer_config

    fixed = rloo_settings(recipe.reinforcement) if kind == "rloo" and recipe.reinforcement else {}
    arguments = trainer_config(kind, trainer, folder=Path("runs") / recipe.name, seed=recipe.seed, fixed=fixed)
    if arguments.max_steps > 0:
        return arguments.max_steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return arguments.num_train_epochs * rows


def _num_lines(path: Path) -> int:
    from solon.artifact import read_rows

    return sum(1 for _ in read_rows(path))


# ---- measuring


class _Probed(NamedTuple):
    read_tokens: int
    written: list[int]
    cut: list[bool]
    seconds: float


async def probe(engine: Engine, prompts: Sequence[Sequence[Message]], *, sampling: Sampling) -> Speed:
    """How fast the engine reads and writes, and how long its answers are, from a few seconds of work.

    Raises EngineError if it answers none of the prompts.
    """
    await _answer(engine, prompts[:1], sampling=sampling, max_new_tokens=1)
    read = await _answer(engine, prompts, sampling=sampling, max_new_tokens=1)
    one = await _answer(engine, prompts[:1], sampling=sampling, max_new_tokens=min(8, sampling.max_new_tokens))
    per_token_s = one.seconds / max(1, sum(one.written))
    tokens = min(sampling.max_new_tokens, max(8, int(PROBE_S / per_token_s / 2)))
    whole = await _answer(engine, prompts, sampling=sampling, max_new_tokens=tokens)
    reads = read.read_tokens / read.seconds
    writing_s = max(whole.seconds - whole.read_tokens / reads, whole.seconds / 10)
    lengths = [sampling.max_new_tokens if cut else n for n, cut in zip(whole.written, whole.cut, strict=True)]
    return Speed(
        reads=reads,
        writes=sum(whole.written) / writing_s,
        answer=fmean(lengths),
        chooses=engine.capabilities.logprobs != "none",
    )


async def _answer(
    engine: Engine, prompts: Sequence[Sequence[Message]], *, sampling: Sampling, max_new_tokens: int
) -> _Probed:
    import asyncio

    chosen = sampling.model_copy(update={"max_new_tokens": max_new_tokens})
    requests = [Request(prompt=tuple(prompt), sampling=chosen, seed=i) for i, prompt in enumerate(prompts)]
    began_s = time.monotonic()
    results = await asyncio.gather(*(engine.generate(request) for request in requests), return_exceptions=True)
    seconds = time.monotonic() - began_s
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, EngineError):
            raise result
    done = [result for result in results if not isinstance(result, BaseException)]
    if not done:
        assert isinstance(results[0], EngineError)
        raise results[0]
    return _Probed(
        read_tokens=sum(one.prompt_tokens for one in done),
        written=[one.completion_tokens for one in done],
        cut=[one.finish_reason == "length" for one in done],
        seconds=max(seconds, 1e-6),
    )


def token_counter(config: EngineConfig) -> Callable[[Sequence[Message]], int]:
    """Counts the tokens of a dialogue: by the tokenizer of a local model, by characters for a server's."""
    if not isinstance(config, LocalEngineConfig):
        return lambda dialogue: len(render_transcript(dialogue)) // CHARACTERS_PER_TOKEN
    from solon.training import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(config.path)
    return lambda dialogue: len(encode_prompt(tokenizer, dialogue))


def measure_sizes(run: Run, *, answer: float, count: Callable[[Sequence[Message]], int]) -> Sizes:
    """Lengths of the prompts and of what the constitution adds to them."""
    recipe, principles = run.recipe, run.constitution.principles
    rows: list[PromptRow] = [*run.red_team[:SAMPLE], *run.helpful[: max(0, SAMPLE - len(run.red_team))]]

    def text(texts: Iterable[str | None]) -> float:
        lengths = [count([_asking(one)]) for one in texts if one]
        return fmean(lengths) if lengths else 0.0

    empty = comparison_prompt([_asking("?")], "", "", "")
    questions = [question_of(one) for one in principles if one.serves("comparison")]
    examples = run.constitution.exemplars
    revised = [(*one.conversation, _asking(f"{one.critique} {one.revision}")) for one in examples.revision]
    compared = [(*one.conversation, _asking(f"{one.better} {one.worse}")) for one in examples.comparison]
    few_revision = recipe.revisions.few_shot if recipe.revisions else 0
    few_comparison = recipe.comparisons.few_shot if recipe.comparisons else 0
    return Sizes(
        num_red_team=len(run.red_team),
        num_helpful=len(run.helpful),
        prompt=fmean(count(row["prompt"]) for row in rows) if rows else 0.0,
        answer=answer,
        critique_request=text(one.critique for one in principles),
        revision_request=text(one.revision for one in principles),
        question=count(empty) + text(questions),
        revision_examples=few_revision * (fmean(map(count, revised)) if revised else 0.0),
        comparison_examples=few_comparison * (count(empty) + (fmean(map(count, compared)) if compared else 0.0)),
    )


def _asking(content: str) -> Message:
    return {"role": "user", "content": content}


# ---- the plan


async def plan(recipe: Recipe, *, stages: Collection[str] | None = None) -> Plan:
    """The plan of a recipe, or of those `stages` alone. Loads or asks its models; writes nothing.

    Raises InputError for prompts, a model or a server that is not there.
    """
    run = Run(recipe=recipe, folder=RunFolder(Path("runs") / recipe.name), again=frozenset(), progress=silent)
    sampling = next(
        (section.sampling for section in (recipe.revisions, recipe.pairs, recipe.evaluation) if section), Sampling()
    )
    asked = [row["prompt"] for row in run.prompts[:PROBE_PROMPTS]]
    engines: dict[Who, EngineConfig] = {
        "model": recipe.model,
        "judge": run.judge,
        "evaluation judge": run.evaluation_judge,
    }
    known: dict[EngineConfig, Speed] = {}
    for config in engines.values():
        if config not in known:
            async with opened(config) as engine:
                known[config] = await probe(engine, asked, sampling=sampling)
    speeds = {who: known[config] for who, config in engines.items()}
    chooses: dict[Who, bool] = {who: speed.chooses for who, speed in speeds.items()}
    sizes = measure_sizes(run, answer=speeds["model"].answer, count=token_counter(recipe.model))
    found = steps(recipe, run, sizes, chooses=chooses)
    rows = tuple(_priced(step, speeds[step.who]) for step in found if stages is None or step.stage in stages)
    return Plan(rows=rows, assumptions=_assumptions(recipe, sizes, speeds["model"], sampling=sampling))


def _priced(step: Step, speed: Speed) -> PlanRow:
    reading = step.prompt_tokens + TRAINING_FACTOR * step.training_tokens
    return PlanRow(
        stage=step.stage,
        what=step.what,
        requests=round(step.requests),
        prompt_tokens=round(step.prompt_tokens),
        completion_tokens=round(step.completion_tokens),
        training_tokens=round(step.training_tokens),
        seconds=reading / speed.reads + step.completion_tokens / speed.writes,
    )


def _assumptions(recipe: Recipe, sizes: Sizes, speed: Speed, *, sampling: Sampling) -> str:
    local = isinstance(recipe.model, LocalEngineConfig)
    counted = "the model's tokenizer" if local else f"{CHARACTERS_PER_TOKEN} characters a token"
    return (
        f"Assumed: {sizes.num_red_team} red-team and {sizes.num_helpful} helpful prompts of {sizes.prompt:.0f} tokens "
        f"(by {counted}, on at most {SAMPLE}); answers of "
        f"{sizes.answer:.0f} tokens of at most {sampling.max_new_tokens}; "
        f"a probe just now read {speed.reads:,.0f} and wrote {speed.writes:,.0f} tokens/s; a token trained on costs "
        f"{TRAINING_FACTOR} read ones. Loading and saving are not counted, nor is what other work on the machine takes."
    )
