"""A verb for each stage, usable alone on files. Each writes the stage's folder under --out, as a recipe's run does."""

# A command has a parameter for each of its options.
# ruff: noqa: PLR0913

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solon.cli.recipes import Settings, execute

if TYPE_CHECKING:
    from solon.preference import PreferenceResult

_Prompts = Annotated[
    str,
    typer.Argument(metavar="PROMPTS", help='JSON lines with a "prompt", HH transcripts, or "sandbox".'),
]
_Model = Annotated[
    str,
    typer.Option(metavar="MODEL", help="Model folder, sandbox:helpful, or a server: http://localhost:8000/v1#NAME."),
]
_Start = Annotated[str, typer.Option(metavar="DIR", help="Model folder to start from, or sandbox:base.")]
_Constitution = Annotated[str, typer.Option(metavar="NAME|FILE", help="A shipped constitution or a file.")]
_Out = Annotated[Path, typer.Option(metavar="DIR", help="The run's folder; the stage's folder is made in it.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="Use the first N rows; by default all.")]
_Tokens = Annotated[int, typer.Option(min=1, help="Tokens of a text at most.")]
_Epochs = Annotated[float, typer.Option(min=0.001, help="Passes over the rows.")]
_Rate = Annotated[float | None, typer.Option(min=0.0, help="Learning rate; by default TRL's.")]
_Batch = Annotated[int, typer.Option(min=1, help="Rows per step and device.")]
_Seed = Annotated[int, typer.Option(min=0, help="Every other seed derives from it.")]
_Again = Annotated[bool, typer.Option("--again", help="Start from nothing, whatever --out holds of this stage.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for verb in (revise, sft, pairs, compare, pm, rl, evaluate, report):
        app.command()(verb)


def revise(
    prompts: _Prompts,
    model: _Model,
    constitution: _Constitution = "harmless",
    out: _Out = Path("runs/revise"),
    rounds: Annotated[int, typer.Option(min=1, help="Critiques and revisions per prompt.")] = 4,
    max_new_tokens: _Tokens = 256,
    limit: _Limit = None,
    seed: _Seed = 0,
    again: _Again = False,
) -> None:
    """Answer prompts, criticise and revise the answers."""
    from solon.cli.inputs import engine_config
    from solon.cli.screens import stage_done
    from solon.config import Prompts, Recipe, Revisions
    from solon.engine import Sampling

    recipe = Recipe(
        name="revise",
        seed=seed,
        constitution=constitution,
        model=engine_config(model),
        prompts=Prompts(path=prompts, limit=limit),
        revisions=Revisions(rounds=rounds, sampling=Sampling(max_new_tokens=max_new_tokens)),
    )
    execute(recipe, out, stages=["01-revisions"], again=["01-revisions"] if again else ())
    stage_done(out / "01-revisions", "revisions.jsonl")


def sft(
    file: Annotated[Path, typer.Argument(metavar="FILE", help='Rows {"prompt", "completion"}, or revisions.jsonl.')],
    model: _Start,
    out: _Out = Path("runs/sft"),
    epochs: _Epochs = 1.0,
    learning_rate: _Rate = None,
    batch_size: _Batch = 8,
    seed: _Seed = 0,
    again: _Again = False,
) -> None:
    """Fine-tune a model on rows or on revisions."""
    from solon.artifact import RunFolder, content_id, file_hash
    from solon.cli.inputs import read_sft
    from solon.cli.progress import shown
    from solon.cli.screens import stage_done
    from solon.config import Supervised, outcome_settings
    from solon.training import RunContext, resolve_model, train_sft

    rows = read_sft(file, seed=seed)
    settings = Supervised(pretrained=model, trainer=_trainer(epochs, learning_rate, batch_size))
    run = RunFolder(out)
    stage = run.stage("02-sl-cai")
    inputs = {"rows": content_id(rows), "model": file_hash(resolve_model(model))}
    with run.held(), shown() as progress:
        if stage.begin(config={"seed": seed, **outcome_settings(settings)}, inputs=inputs, again=again):
            context = RunContext(seed=seed, facts={"rows from": file.name}, progress=progress)
            trained = train_sft(rows, model=model, stage=stage, config=settings, run=context)
            stage.finish(counts=trained.counts)
    stage_done(stage.path, "model")


def pairs(
    prompts: _Prompts,
    model: _Model,
    out: _Out = Path("runs/pairs"),
    per_prompt: Annotated[int, typer.Option(min=1, help="Pairs per prompt.")] = 1,
    max_new_tokens: _Tokens = 256,
    limit: _Limit = None,
    seed: _Seed = 0,
    again: _Again = False,
) -> None:
    """Sample two answers to each prompt, to compare."""
    from solon.cli.inputs import engine_config
    from solon.cli.screens import stage_done
    from solon.config import Pairs, Prompts, Recipe
    from solon.engine import Sampling

    recipe = Recipe(
        name="pairs",
        seed=seed,
        model=engine_config(model),
        prompts=Prompts(path=prompts, limit=limit),
        pairs=Pairs(per_prompt=per_prompt, sampling=Sampling(max_new_tokens=max_new_tokens)),
    )
    execute(recipe, out, stages=["03-comparisons"], again=["03-comparisons"] if again else ())
    stage_done(out / "03-comparisons", "pairs.jsonl")


def compare(
    file: Annotated[Path, typer.Argument(metavar="PAIRS", help='JSON lines {"prompt", "a", "b"}.')],
    judge: _Model,
    constitution: _Constitution = "harmless",
    out: _Out = Path("runs/compare"),
    principles: Annotated[int, typer.Option(min=1, help="Principles drawn per pair and averaged.")] = 1,
    few_shot: Annotated[int, typer.Option(min=0, help="Worked examples of the constitution before the question.")] = 0,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Let the judge think in writing first.")] = False,
    seed: _Seed = 0,
    again: _Again = False,
) -> None:
    """Label pairs: how probably is an answer the better?"""
    import asyncio

    from solon.artifact import RunFolder, content_id
    from solon.cli.inputs import engine_config
    from solon.cli.progress import shown
    from solon.cli.screens import stage_done
    from solon.config import Comparisons, Pairs, Prompts, Recipe, outcome_settings
    from solon.constitution import Constitution
    from solon.feedback import compare as label
    from solon.feedback import read_pairs
    from solon.pipeline import opened

    settings = Comparisons(principles=principles, few_shot=few_shot, reasoning=reasoning)
    rules, rows = Constitution.load(constitution), read_pairs(file)
    recipe = Recipe(
        name="compare",
        seed=seed,
        constitution=constitution,
        model=engine_config(judge),
        prompts=Prompts(path=str(file)),
        pairs=Pairs(),
        comparisons=settings,
    )
    run = RunFolder(out)
    stage = run.stage("03-comparisons")
    config = {"seed": seed, "judge": judge, "comparisons": outcome_settings(settings)}
    inputs = {"constitution": rules.fingerprint, "pairs": content_id(rows)}

    async def work() -> None:
        async with opened(recipe.model) as engine:
            if stage.begin(config=config, inputs=inputs, again=again):
                await label(recipe, stage, constitution=rules, engine=engine, pairs=rows, progress=progress)

    with run.held(), shown() as progress:
        asyncio.run(work())
    stage_done(stage.path, "comparisons.jsonl")


def pm(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Comparisons in HH's form (hard labels) or comparisons.jsonl (soft)."),
    ],
    model: _Start,
    out: _Out = Path("runs/pm"),
    epochs: _Epochs = 1.0,
    learning_rate: _Rate = None,
    batch_size: _Batch = 8,
    limit: _Limit = None,
    seed: _Seed = 0,
    again: _Again = False,
) -> None:
    """Train a preference model, and measure it.

    On comparisons that are held out, beside two baselines: the shorter, and the longer, reply is better.
    """
    from solon.artifact import RunFolder
    from solon.cli.inputs import described, read_comparisons
    from solon.cli.progress import shown
    from solon.config import Preference
    from solon.preference import train_preference
    from solon.training import RunContext, resolve_model

    resolve_model(model)
    found = read_comparisons(file, limit=limit)
    labels = "soft" if found.soft else "hard"
    typer.echo(
        f"{len(found.rows)} comparisons with {labels} labels; refused rows: {described(found.refused)}", err=True
    )
    run = RunFolder(out)
    stage = run.stage("04-preference-model")
    settings = Preference(start=model, labels=labels, trainer=_trainer(epochs, learning_rate, batch_size))
    with run.held(), shown() as progress:
        context = RunContext(seed=seed, again=again, facts={"comparisons from": file.name}, progress=progress)
        result = train_preference(found.rows, model=model, stage=stage, config=settings, run=context)
    for line in _measured(result, refused=found.refused, failures=stage.manifest()["failures"]):
        typer.echo(line)


def _measured(result: PreferenceResult, *, refused: dict[str, int], failures: dict[str, int]) -> list[str]:
    """The lines that say how good a preference model is, and what it was made of."""
    from solon.cli.inputs import described

    measured, counts = result.measured, result.counts
    rows = [("preference model", measured.accuracy.get("all"))]
    rows += [("the shorter reply is better", measured.shorter), ("the longer reply is better", measured.longer)]
    lines = [f"{'accuracy on held-out comparisons':34}{'':8}  {'95 % interval':16}n"]
    for name, share in rows:
        if share is None:
            lines.append(f"  {name:32}not measured: no held-out comparison has a better reply")
        else:
            limits = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
            lines.append(f"  {name:32}{100 * share.value:6.1f} %  {limits:16}{share.n}")
    if measured.calibration_error is not None:
        lines.append(f"  calibration error {measured.calibration_error.value:.3f}, ties {measured.num_ties}")
    lines.append(f"trained on {counts['trained_pairs']}, held out {counts['held_out_pairs']}")
    lines.append(f"refused rows: {described(refused)}; left out by the model: {described(failures)}")
    return [*lines, f"model: {result.model}"]


def rl(
    prompts: _Prompts,
    model: Annotated[str, typer.Option(metavar="DIR", help="Model folder of the policy: SL-CAI.")],
    pm: Annotated[str, typer.Option(metavar="DIR", help="Folder of the preference model.")],
    out: _Out = Path("runs/rl"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    learning_rate: _Rate = None,
    beta: Annotated[float, typer.Option(min=0.0, help="Weight of the KL from --model, in score units per nat.")] = 0.05,
    max_new_tokens: _Tokens = 128,
    again: _Again = False,
) -> None:
    """Train a policy against a preference model."""
    from solon.artifact import RunFolder
    from solon.cli.inputs import prompt_rows
    from solon.cli.progress import shown
    from solon.cli.screens import stage_done
    from solon.config import RLOO, Reinforcement
    from solon.reinforcement import train_rl
    from solon.training import RunContext, resolve_model

    for folder in (model, pm):
        resolve_model(folder)
    rows = prompt_rows(prompts, seed=0)
    trainer: dict[str, Any] = {"max_steps": steps, "per_device_train_batch_size": 8}
    trainer |= {} if learning_rate is None else {"learning_rate": learning_rate}
    settings = Reinforcement(algorithm=RLOO(beta=beta), max_new_tokens=max_new_tokens, trainer=trainer)
    run = RunFolder(out)
    stage = run.stage("05-rl-cai")
    with run.held(), shown() as progress:
        context = RunContext(again=again, facts={"prompts from": Path(prompts).name}, progress=progress)
        train_rl(rows, model=model, preference_model=pm, stage=stage, config=settings, run=context)
    stage_done(stage.path, "model")


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has models.")],
    settings: Settings = [],  # noqa: B006 - typer makes a new list for each call
    again: _Again = False,
) -> None:
    """Evaluate the models of a run, and write its report."""
    from solon.cli.screens import closing
    from solon.config import load_recipe
    from solon.errors import InputError

    written = run / "recipe.resolved.json"
    if not written.is_file():
        raise InputError("this is not the folder of a run", path=run, remedy="make one with `solon run RECIPE`")
    recipe = load_recipe(written, settings)
    if recipe.evaluation is None:
        remedy = "say what to evaluate, such as --set evaluation.prompts=FILE --set evaluation.samples=100"
        raise InputError("the recipe has no `evaluation` section", path=written, remedy=remedy)
    execute(recipe, run, stages=["06-evaluation", "report"], again=["06-evaluation"] if again else ())
    closing(run)


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")]) -> None:
    """Write the page of a run, and show its results."""
    from solon.cli.screens import closing
    from solon.report import write_report

    write_report(run)
    closing(run)


def _trainer(epochs: float, learning_rate: float | None, batch_size: int) -> dict[str, Any]:
    """The settings of TRL's trainer that the verbs have options for."""
    chosen: dict[str, Any] = {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size}
    return chosen if learning_rate is None else {**chosen, "learning_rate": learning_rate}
