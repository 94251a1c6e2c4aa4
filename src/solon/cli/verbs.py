"""A verb for each stage, usable alone on files. Each writes the stage's folder under --out, as a recipe's run does."""

# A command has a parameter for each of its options.
# ruff: noqa: PLR0913

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from solon.cli.measuring import evaluate
from solon.cli.recipes import execute

if TYPE_CHECKING:
    from solon.artifact import Progress, StageFolder
    from solon.config import Launch, Recipe
    from solon.constitution import Constitution
    from solon.feedback import PairRow
    from solon.preference import Measured, PreferenceResult

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
_Processes = Annotated[int | None, typer.Option(min=1, hidden=True, help="Train in so many processes.")]
_Again = Annotated[bool, typer.Option("--again", help="Start from nothing, whatever --out holds of this stage.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for verb in (revise, sft, pairs, compare, agree, pm, rl, evaluate, report):
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
    processes: _Processes = None,
    again: _Again = False,
) -> None:
    """Fine-tune a model on rows or on revisions; with --processes N in N processes."""
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
        context = RunContext(seed=seed, facts={"rows from": file.name}, progress=progress, launch=_launch(processes))
        if stage.begin(config={**outcome_settings(settings), **context.settings}, inputs=inputs, again=again):
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
    reasoning_samples: Annotated[
        int, typer.Option(min=0, help="Chains of thought per order, averaged; 0: the judge does not think first.")
    ] = 0,
    reasoning: Annotated[bool, typer.Option("--reasoning", hidden=True)] = False,
    no_gate: Annotated[bool, typer.Option("--no-gate", hidden=True)] = False,
    seed: _Seed = 0,
    again: _Again = False,
) -> None:
    """Label pairs: how probably is an answer the better?

    First the judge must pass a gate (not with --no-gate): pairs whose better answer is known.
    """
    # --reasoning is --reasoning-samples 1. It and --no-gate are not listed: a command's help has eight options.
    import asyncio

    from solon.artifact import RunFolder
    from solon.cli.inputs import engine_config
    from solon.cli.progress import shown
    from solon.cli.screens import stage_done
    from solon.config import Comparisons, Gate, Pairs, Prompts, Recipe
    from solon.constitution import Constitution
    from solon.feedback import read_pairs
    from solon.plan import check_constitution

    settings = Comparisons(
        principles=principles,
        few_shot=few_shot,
        reasoning=reasoning or reasoning_samples > 0,
        reasoning_samples=max(1, reasoning_samples),
        gate=None if no_gate else Gate(),
    )
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
    check_constitution(recipe)
    run = RunFolder(out)
    stage = run.stage("03-comparisons")
    with run.held(), shown() as progress:
        asyncio.run(_label(recipe, stage, rules=rules, judge=judge, pairs=rows, again=again, progress=progress))
    stage_done(stage.path, "comparisons.jsonl")


async def _label(
    recipe: Recipe,
    stage: StageFolder,
    *,
    rules: Constitution,
    judge: str,
    pairs: list[PairRow],
    again: bool,
    progress: Progress,
) -> None:
    from solon.artifact import content_id
    from solon.config import outcome_settings
    from solon.feedback import compare as label
    from solon.run import fingerprint, opened, settings_of
    from solon.sandbox import PREFIX, planted_pairs

    settings = recipe.comparisons
    config = {"seed": recipe.seed, "judge": settings_of(recipe.model), "comparisons": outcome_settings(settings)}
    inputs = {"constitution": rules.fingerprint, "pairs": content_id(pairs), "judge": fingerprint(recipe.model)}
    # The sandbox's models know their own world alone.
    gate = settings.gate if settings and judge.startswith(PREFIX) else None
    planted = planted_pairs(gate.num, seed=recipe.seed) if gate else None
    async with opened(recipe.model) as engine:
        if stage.begin(config=config, inputs=inputs, again=again):
            await label(
                recipe, stage, constitution=rules, engine=engine, pairs=pairs, planted=planted, progress=progress
            )


def agree(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A judge's comparisons.jsonl.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Another judge's, of the same pairs.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of it to a file, as JSON.")] = None,
) -> None:
    """Say what a judge's labels lean to, and how far two judges agree."""
    from dataclasses import asdict

    from solon.artifact import write_json
    from solon.cli.inputs import not_the_input
    from solon.cli.judges import agreement_lines, bias_lines
    from solon.feedback import judge_agreement, judge_bias, read_labels

    not_the_input(out, file, other)
    rows = [read_labels(path) for path in (file, other) if path is not None]
    biases = [judge_bias(one) for one in rows]
    both = judge_agreement(*rows) if len(rows) == 2 else None
    if out is not None:
        write_json(out, {"judges": [asdict(bias) for bias in biases], "agreement": asdict(both) if both else None})
        typer.echo(out)
        return
    for line in [*(line for bias in biases for line in bias_lines(bias)), *(agreement_lines(both) if both else [])]:
        typer.echo(line)


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
    labels: Annotated[
        Literal["soft", "hard", "sampled", "margin"] | None,
        typer.Option(help="What is learnt of a probability; by default soft, and hard where FILE has none."),
    ] = None,
    seed: _Seed = 0,
    processes: _Processes = None,
    again: _Again = False,
) -> None:
    """Train a preference model, with --processes N in N processes, and measure it.

    On comparisons that are held out, beside two baselines: the shorter, and the longer, reply is better.
    """
    from solon.artifact import RunFolder
    from solon.cli.inputs import described, read_comparisons
    from solon.cli.progress import shown
    from solon.config import Preference
    from solon.preference import train_preference
    from solon.training import RunContext, resolve_model

    resolve_model(model)
    found = read_comparisons(file)
    labels = labels or ("soft" if found.soft else "hard")
    typer.echo(
        f"{len(found.rows)} comparisons with {labels} labels; refused rows: {described(found.refused)}", err=True
    )
    run = RunFolder(out)
    stage = run.stage("04-preference-model")
    settings = Preference(start=model, labels=labels, trainer=_trainer(epochs, learning_rate, batch_size))
    with run.held(), shown() as progress:
        facts = {"comparisons from": file.name}
        context = RunContext(seed=seed, again=again, facts=facts, progress=progress, launch=_launch(processes))
        result = train_preference(found.rows, model=model, stage=stage, config=settings, run=context)
    for line in _measured(result, refused=found.refused, failures=stage.manifest()["failures"]):
        typer.echo(line)


def _measured(result: PreferenceResult, *, refused: dict[str, int], failures: dict[str, int]) -> list[str]:
    """The lines that say how good a preference model is, and what it was made of."""
    from solon.cli.inputs import described

    measured, counts = result.measured, result.counts
    rows = [("preference model", measured.accuracy.get("all"))]
    sources = sorted(measured.calibration_error_by_source)
    rows += [(f"  {source}", measured.accuracy.get(source)) for source in sources if len(sources) > 1]
    rows += [("the shorter reply is better", measured.shorter), ("the longer reply is better", measured.longer)]
    lines = [f"{'accuracy on held-out comparisons':34}{'':8}  {'95 % interval':16}n"]
    for name, share in rows:
        if share is None:
            lines.append(f"  {name:32}not measured: no held-out comparison has a better reply")
        else:
            limits = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
            lines.append(f"  {name:32}{100 * share.value:6.1f} %  {limits:16}{share.n}")
    lines += _calibration(measured)
    lines.append(f"trained on {counts['trained_pairs']}, held out {counts['held_out_pairs']}")
    lines.append(f"refused rows: {described(refused)}; left out by the model: {described(failures)}")
    return [*lines, f"model: {result.model}"]


def _calibration(measured: Measured) -> list[str]:
    """How far the probabilities can be taken at their word, before and after they are scaled by a temperature."""
    by_source = measured.calibration_error_by_source
    rows = [("expected calibration error", measured.calibration_error)]
    rows += [(f"  {source}", error) for source, error in sorted(by_source.items()) if len(by_source) > 1]
    rows += [("  scaled", measured.calibration_error_scaled)]
    rows += [("log loss, nats", measured.log_loss), ("  scaled", measured.log_loss_scaled)]
    if measured.calibration_error is None:
        return []
    lines = [f"{'calibration on held-out comparisons':42}  {'95 % interval':16}n"]
    for name, found in rows:
        if found is not None:
            limits = f"{found.low:.3f} to {found.high:.3f}"
            lines.append(f"  {name:32}{found.value:8.3f}  {limits:16}{found.n}")
    scaled = "fitted on all of them; scaled: by one that was fitted on the other half of the prompts"
    if measured.calibration_error_scaled is None:
        scaled = "not fitted: too few held-out comparisons"
    return [*lines, f"temperature {measured.temperature:.3f}, {scaled}; ties {measured.num_ties}"]


def rl(
    prompts: _Prompts,
    model: Annotated[str, typer.Option(metavar="DIR", help="Model folder of the policy: SL-CAI.")],
    pm: Annotated[str, typer.Option(metavar="DIR", help="Folder of the preference model.")],
    out: _Out = Path("runs/rl"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    learning_rate: _Rate = None,
    algorithm: Annotated[Literal["rloo", "grpo", "ppo"], typer.Option(help="How the policy is trained.")] = "rloo",
    beta: Annotated[
        float | None,
        typer.Option(min=0.0, help="Weight of the KL from --model, in score units per nat; else the algorithm's own."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, hidden=True, help="Longest answer.")] = 128,
    processes: _Processes = None,
    again: _Again = False,
) -> None:
    """Train a policy against a preference model.

    Two more options: --processes N trains in N processes; --max-new-tokens N is the longest answer (128).
    """
    from solon.artifact import RunFolder
    from solon.cli.inputs import prompt_rows
    from solon.cli.progress import shown
    from solon.cli.screens import stage_done
    from solon.config import Reinforcement
    from solon.reinforcement import train_rl
    from solon.training import RunContext, resolve_model

    for folder in (model, pm):
        resolve_model(folder)
    rows = prompt_rows(prompts, seed=0)
    trainer: dict[str, Any] = {"max_steps": steps, "per_device_train_batch_size": 8}
    trainer |= {} if learning_rate is None else {"learning_rate": learning_rate}
    chosen: dict[str, Any] = {"kind": algorithm} if beta is None else {"kind": algorithm, "beta": beta}
    settings = Reinforcement.model_validate({"algorithm": chosen, "max_new_tokens": max_new_tokens, "trainer": trainer})
    run = RunFolder(out)
    stage = run.stage("05-rl-cai")
    with run.held(), shown() as progress:
        facts = {"prompts from": Path(prompts).name}
        context = RunContext(again=again, facts=facts, progress=progress, launch=_launch(processes))
        train_rl(rows, model=model, preference_model=pm, stage=stage, config=settings, run=context)
    stage_done(stage.path, "model")


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")]) -> None:
    """Write the page of a run, and show its results."""
    from solon.cli.screens import closing
    from solon.report import write_report

    write_report(run)
    closing(run)


def _launch(processes: int | None) -> Launch | None:
    from solon.config import Launch

    return None if processes is None else Launch(processes=processes)


def _trainer(epochs: float, learning_rate: float | None, batch_size: int) -> dict[str, Any]:
    """The settings of TRL's trainer that the verbs have options for."""
    chosen: dict[str, Any] = {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size}
    return chosen if learning_rate is None else {**chosen, "learning_rate": learning_rate}
