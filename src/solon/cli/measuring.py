"""`solon evaluate`, of a run or on multiple-choice questions, and `solon accuracy` on pairs that people judged."""

# A command has a parameter for each of its options.
# ruff: noqa: PLR0913

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solon.cli.recipes import Settings, execute

if TYPE_CHECKING:
    from solon.artifact import StageFolder
    from solon.constitution import Constitution, Principle
    from solon.evaluation import ChoiceMeasured, GoldMeasured, GoldPairs, Questions, RefusedRow
    from solon.evaluation.accuracy import ScoreDialogues
    from solon.preference import PreferenceModel
    from solon.stats import Interval, Reliability

STAGE = "06-evaluation"
_PLACES_SHOWN = 8


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(accuracy)


def evaluate(
    what: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="The folder of a run, or a file of multiple-choice questions.")
    ],
    settings: Settings = [],  # noqa: B006 - typer makes a new list for each call
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="FILE: whom to ask. A model folder, sandbox:helpful, URL#NAME.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="FILE: where rows and scores.json go; runs/evaluate.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="FILE: answers per question, of a server without log-probabilities; 8.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="FILE: ask the first N questions; by default all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="FILE: every other seed derives from it; 0.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Start from nothing, whatever is there.")] = False,
) -> None:
    """Evaluate a run, or ask a model questions.

    A run: its models are evaluated and its report is written. A file of multiple-choice questions: --model is asked,
    and how many it answers rightly is shown.
    """
    from solon.errors import InputError

    given = {"--model": model, "--out": out, "--samples": samples, "--limit": limit, "--seed": seed}
    if not what.exists():
        raise InputError("there is no such file or folder", path=what, remedy="check the path")
    if not what.is_file():
        if unused := [name for name, value in given.items() if value is not None]:
            remedy = "they are for a file of multiple-choice questions; a run has --set"
            raise InputError(f"{', '.join(unused)} with a folder", path=what, remedy=remedy)
        _evaluate_run(what, settings, again=again)
        return
    if settings:
        raise InputError("--set is for a run's folder, and this is a file", path=what, remedy="leave it out")
    if model is None:
        raise InputError("who is to be asked these questions?", path=what, remedy="give --model MODEL")
    folder = out or Path("runs/evaluate")
    ask_questions(what, model=model, out=folder, samples=samples, limit=limit, seed=seed or 0, again=again)


def _evaluate_run(run: Path, settings: list[str], *, again: bool) -> None:
    from solon.cli.screens import closing
    from solon.config import load_recipe
    from solon.errors import InputError

    written = run / "recipe.resolved.json"
    if not written.is_file():
        remedy = "make one with `solon run RECIPE`, or give a file of multiple-choice questions"
        raise InputError("this is not the folder of a run", path=run, remedy=remedy)
    recipe = load_recipe(written, settings)
    if recipe.evaluation is None:
        remedy = "say what to evaluate, such as --set evaluation.prompts=FILE --set evaluation.samples=100"
        raise InputError("the recipe has no `evaluation` section", path=written, remedy=remedy)
    execute(recipe, run, stages=["06-evaluation", "report"], again=["06-evaluation"] if again else ())
    closing(run)


def ask_questions(
    file: Path,
    *,
    model: str,
    out: Path,
    samples: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    again: bool = False,
) -> None:
    """Ask a model multiple-choice questions, and show how many it answers rightly."""
    import asyncio

    from solon.artifact import RunFolder, content_id
    from solon.cli.inputs import engine_config
    from solon.cli.progress import shown
    from solon.evaluation import ask, choice_measured_of, finish_choices, read_questions
    from solon.evaluation.choice import SAMPLES
    from solon.run import fingerprint, opened

    _no_run(out)
    config, found = engine_config(model), read_questions(file, limit=limit)
    run = RunFolder(out)
    stage = run.stage(STAGE)
    drawn = samples or SAMPLES
    settings = {"seed": seed, "samples": drawn}
    inputs = {"questions": content_id(found.questions), "model": fingerprint(config)}

    async def work() -> None:
        async with opened(config) as engine:
            if stage.begin(config=settings, inputs=inputs, again=again):
                rows = await ask(
                    stage, engine=engine, questions=found.questions, seed=seed, samples=drawn, progress=progress
                )
                finish_choices(stage, rows, found=found, engine=engine, seed=seed)

    with run.held(), shown() as progress:
        if again or not stage.finished or stage.begin(config=settings, inputs=inputs):
            asyncio.run(work())
    measured = choice_measured_of(stage.manifest()["measured"])
    _show(_choice_lines(measured, found=found, stage=stage))


def accuracy(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Pairs that people have judged: an HH, LLMBar or PandaLM file."),
    ],
    pm: Annotated[str | None, typer.Option(metavar="DIR", help="Measure this preference model.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Measure this judge: a model folder, sandbox:helpful, or URL#NAME."),
    ] = None,
    constitution: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Ask the judge under its principles; else which answer helps more."),
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask the judge this, such as 'Which response is better?'.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Rows and scores.json go under it.")] = Path("runs/accuracy"),
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N pairs; by default all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a judge: every other seed derives from it; 0.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Start from nothing, whatever --out holds.")] = False,
) -> None:
    """Does a judge prefer what people prefer?

    How often a preference model (--pm), or a model as judge (--judge), prefers the answer that people prefer, beside
    two baselines on the same pairs: the shorter, and the longer, answer is better. Ties are left out.
    """
    from solon.artifact import RunFolder
    from solon.evaluation import gold_measured_of, read_gold

    _one_way(pm=pm, judge=judge, constitution=constitution, question=question, seed=seed)
    _no_run(out)
    found = read_gold(file, limit=limit)
    run = RunFolder(out)
    stage = run.stage(STAGE)
    with run.held():
        if pm is not None:
            _by_scores(stage, pm, found=found, again=again)
        elif judge is not None:
            asked = _question(constitution, question)
            _by_judge(stage, judge, question=asked, found=found, seed=seed or 0, again=again)
    measured = gold_measured_of(stage.manifest()["measured"])
    _show(_gold_lines(measured, what="judge" if pm is None else "preference model", found=found, stage=stage))


# ---- what is given


def _one_way(
    *, pm: str | None, judge: str | None, constitution: str | None, question: str | None, seed: int | None
) -> None:
    from solon.errors import InputError

    if (pm is None) == (judge is None):
        raise InputError("what is to be measured?", remedy="give --pm DIR or --judge MODEL, one of them")
    for name, value in (("--constitution", constitution), ("--question", question), ("--seed", seed)):
        if pm is not None and value is not None:
            what = f"{name} is for a judge; a preference model is asked nothing, and nothing is drawn"
            raise InputError(what, remedy="leave it out")
    if constitution is not None and question is not None:
        raise InputError("--constitution and --question are given", remedy="give one of them")


def _no_run(out: Path) -> None:
    """A run's own evaluation must not be taken for this one, which --again would delete."""
    from solon.errors import InputError

    if (out / "recipe.resolved.json").exists():
        raise InputError("this is the folder of a run", path=out, remedy="choose another --out")


def _question(constitution: str | None, question: str | None) -> Constitution | Principle:
    from solon.constitution import Constitution, Principle
    from solon.errors import InputError
    from solon.evaluation import HELPFULNESS

    if constitution is not None:
        found = Constitution.load(constitution)
        if not any(one.serves("comparison") for one in found.principles):
            raise InputError(f"{constitution}: no principle is for comparison", remedy="give one a `comparison` text")
        return found
    if question is None:
        return HELPFULNESS
    if not question.strip():
        raise InputError("--question is empty", remedy="such as 'Which response is better?'")
    return Principle(id="question", comparison=question, weight=1.0)


def _scorer(folder: str) -> None:
    """Refuse what is no preference model: a language model would get a score head drawn at random."""
    from solon.artifact import read_json
    from solon.errors import InputError
    from solon.training import resolve_model

    architectures = read_json(resolve_model(folder) / "config.json").get("architectures") or ["none named"]
    if not any("ForSequenceClassification" in one for one in architectures):
        what = f"not a preference model: its architecture is {', '.join(architectures)}"
        raise InputError(what, path=folder, remedy="train one with `solon pm`")


# ---- measuring


def _by_scores(stage: StageFolder, pm: str, *, found: GoldPairs, again: bool) -> None:
    from solon.artifact import file_hash
    from solon.cli.progress import shown
    from solon.evaluation import finish_gold, score_gold
    from solon.preference import PreferenceModel
    from solon.training import resolve_model

    _scorer(pm)
    inputs = {"pairs": _hash(found), "preference model": file_hash(resolve_model(pm))}
    if stage.begin(config={}, inputs=inputs, again=again):
        model = PreferenceModel.load(pm)
        with shown() as progress:
            rows = score_gold(stage, score=_scaled(model), pairs=found.pairs, progress=progress)
        finish_gold(stage, rows, found=found, model="preference-model", seed=0)


def _scaled(model: PreferenceModel) -> ScoreDialogues:
    """Raw scores over the model's own temperature, whose differences are the log-odds of its `probability`."""
    return lambda dialogues: [raw / model.scale.temperature for raw in model.raw_score(dialogues)]


def _by_judge(
    stage: StageFolder,
    judge: str,
    *,
    question: Constitution | Principle,
    found: GoldPairs,
    seed: int,
    again: bool,
) -> None:
    import asyncio

    from solon.artifact import content_id
    from solon.cli.inputs import engine_config
    from solon.cli.progress import shown
    from solon.config import Comparisons, outcome_settings
    from solon.constitution import Principle
    from solon.evaluation import GoldJudge, finish_gold, judge_gold
    from solon.run import fingerprint, opened

    config = engine_config(judge)
    settings = {"seed": seed, "comparisons": outcome_settings(Comparisons())}
    asked = content_id(question.comparison) if isinstance(question, Principle) else question.fingerprint
    inputs = {"pairs": _hash(found), "judge": fingerprint(config), "question": asked}

    async def work() -> None:
        async with opened(config) as engine:
            if stage.begin(config=settings, inputs=inputs, again=again):
                judging = GoldJudge(engine=engine, question=question)
                rows = await judge_gold(stage, judge=judging, pairs=found.pairs, seed=seed, progress=progress)
                finish_gold(stage, rows, found=found, model=engine.capabilities.model, seed=seed)

    with shown() as progress:
        if again or not stage.finished or stage.begin(config=settings, inputs=inputs):
            asyncio.run(work())


def _hash(found: GoldPairs) -> str:
    from dataclasses import asdict

    from solon.artifact import content_id

    return content_id([asdict(pair) for pair in found.pairs])


# ---- what is shown


def _choice_lines(measured: ChoiceMeasured, *, found: Questions, stage: StageFolder) -> Iterable[str]:
    yield _heading("multiple choice")
    yield _share("right", measured.accuracy)
    yield _share("chance", measured.chance)
    yield _share(f"always {measured.majority_option}", measured.majority)
    yield _number("calibration error", measured.calibration_error)
    yield _number("answer mass", measured.answer_mass)
    yield from _bins("probability of the chosen option", measured.reliability)
    yield f"ties, not right: {measured.num_ties}; questions: {len(found.questions)}"
    yield from _endings(found.refused, stage=stage, file="choices.jsonl")


def _gold_lines(measured: GoldMeasured, *, what: str, found: GoldPairs, stage: StageFolder) -> Iterable[str]:
    yield _heading("accuracy on pairs that people judged")
    yield _share(what, measured.accuracy)
    yield _share("the shorter answer is better", measured.shorter)
    yield _share("the longer answer is better", measured.longer)
    for number, one in enumerate(measured.agreement, start=1):
        yield _share(f"{what}, by annotator {number}", one)
    if measured.agreement:
        yield _share("annotators among themselves", measured.annotators_agree)
    yield _number("calibration error", measured.calibration_error)
    for name, value in (("answer mass", measured.answer_mass), ("order gap", measured.order_gap)):
        if value is not None:
            yield _number(name, value)
    yield from _bins("probability of the answer chosen", measured.reliability)
    yield f"ties, left out: {measured.num_ties}; undecided, not right: {measured.num_undecided}"
    yield from _endings(found.refused, stage=stage, file="gold.jsonl")


def _heading(what: str) -> str:
    return f"{what:42}  {'95 % interval':18}n"


def _share(name: str, found: Interval | None) -> str:
    if found is None:
        return f"  {name:32}not measured: no pair is decided"
    limits = "exact" if found.low == found.high else f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"  {name:32}{100 * found.value:6.1f} %  {limits:18}{found.n}"


def _number(name: str, found: Interval) -> str:
    return f"  {name:32}{found.value:8.3f}  {f'{found.low:.3f} to {found.high:.3f}':18}{found.n}"


def _bins(name: str, found: Reliability) -> Iterable[str]:
    yield f"{name:34}{'right':>6}"
    for one in found.bins:
        yield _share(f"{100 * one.low:.0f} to {100 * one.high:.0f} %, mean {100 * one.confidence:.1f} %", one.outcome)


def _endings(refused: Sequence[RefusedRow], *, stage: StageFolder, file: str) -> Iterable[str]:
    from solon.cli.inputs import described

    failures: Mapping[str, int] = stage.manifest()["failures"]
    yield f"unscored: {described(failures)}"
    yield f"refused rows: {refusals(refused)}"
    yield f"rows: {stage.path / file}; figures: {stage.path / 'scores.json'}"


def refusals(refused: Sequence[RefusedRow]) -> str:
    """ "empty response: 2 (index 3, index 8); ..."; "none" for none. At most _PLACES_SHOWN places of a reason."""
    places: dict[str, list[str]] = {}
    for one in refused:
        places.setdefault(one.reason, []).append(one.place)
    parts = [
        f"{reason}: {len(found)} ({', '.join(found[:_PLACES_SHOWN])}{', ...' if len(found) > _PLACES_SHOWN else ''})"
        for reason, found in places.items()
    ]
    return "; ".join(parts) or "none"


def _show(lines: Iterable[str]) -> None:
    from solon.cli.text import clean

    for line in lines:
        typer.echo(clean(line))
