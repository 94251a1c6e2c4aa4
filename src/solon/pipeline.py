"""The whole method, top to bottom: a recipe in, a run folder out.

    await run_recipe(load_recipe("recipes/sandbox.yaml"), Path("runs/sandbox"))

Each step begins a stage folder with its settings and the hashes of what it reads. A finished stage is skipped, a
killed one goes on, one made from something else is refused. A recipe without a stage's section does not run that stage.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from solon.artifact import (
    STAGES,
    Progress,
    RunFolder,
    StageFolder,
    content_id,
    file_hash,
    read_rows,
    silent,
    stage_of,
    write_rows,
)
from solon.config import Recipe, outcome_settings
from solon.dialogue import read_hh
from solon.engine import Engine, LocalEngineConfig, load_engine
from solon.engine.copies import end_idle
from solon.errors import InputError
from solon.evaluation import ConstitutionJudge, Field, Step, draw_steps, evaluate
from solon.feedback import (
    PairRow,
    Planted,
    compare,
    helpful_comparisons,
    num_helpful,
    pass_gate,
    sample_pairs,
    try_gate,
)
from solon.held_out_judges import held_out_of
from solon.run import Run, fingerprint, settings_of
from solon.supervised import revise, sample_helpful, sft, start_model

if TYPE_CHECKING:
    from solon.reinforcement import RolloutJudge
    from solon.training import RunContext

_log = logging.getLogger(__name__)


async def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    stages: Collection[str] | None = None,
    again: Collection[str] = (),
    progress: Progress = silent,
) -> None:
    """Run the recipe's stages, or those of `stages` alone, in `folder`; `again` names stages to start from nothing.

    A stage is named as its folder is: "05-rl-cai" in every iteration of reinforcement, "iteration-2/05-rl-cai" in one.
    """
    _known(stages or ())
    _known(again)
    only = None if stages is None else frozenset(stages)
    run = Run(recipe=recipe, folder=RunFolder(folder), again=frozenset(again), progress=progress, stages=only)
    with run.folder.held(), ExitStack() as stack:
        # The processes of local engines stay from stage to stage.
        stack.callback(end_idle)
        if not any((stage.path / "manifest.json").exists() for stage in run.folder.stages()):
            replace(run, stages=None).describe()

        async def do(name: str, section: object, step: Callable[[Run], Awaitable[None]], at: Run) -> None:
            own = {name, stage_of(name, iteration=at.iteration)}
            if section is not None and (stages is None or own & set(stages)):
                await step(at)

        await do("01-revisions", recipe.revisions, revisions, run)
        await do("02-sl-cai", recipe.supervised, sl_cai, run)
        for at in run.iterations:
            await do("03-comparisons", recipe.pairs, comparisons, at)
            await do("04-preference-model", recipe.preference, preference_model, at)
            await do("05-rl-cai", recipe.reinforcement, rl_cai, at)
        await do("06-evaluation", recipe.evaluation, evaluation, run)
        await do("report", recipe, report, run)


# ---- the stages


async def revisions(run: Run) -> None:
    """The assistant answers red-team prompts, criticises and revises its answers under drawn principles."""
    stage = run.folder.stage("01-revisions")
    if run.begin(stage, run.recipe.revisions, model=run.recipe.model):
        write_rows(stage.path / "prompts.jsonl", run.prompts)
        async with run.opened(run.recipe.model) as engine:
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
    if run.begin(stage, run.recipe.supervised, run.recipe.launch, model=run.recipe.model, start=start, inputs=inputs):
        if run.helpful:
            async with run.opened(run.recipe.model) as engine:
                await sample_helpful(run.recipe, stage, engine=engine, prompts=run.helpful, progress=run.progress)
        train = partial(sft, run.recipe, stage, constitution=run.constitution, revisions=source, progress=run.progress)
        train()


async def comparisons(run: Run) -> None:
    """SL-CAI (later the policy so far) answers every prompt twice; a judge says which answer keeps a drawn principle
    better."""
    stage, recipe = run.stage("03-comparisons"), run.reseeded
    assert recipe.pairs is not None
    labelled_by_oracle = recipe.preference is not None and recipe.preference.helpful == "oracle"
    inputs = {"helpfulness": "oracle"} if labelled_by_oracle else {}
    if not run.begin(stage, recipe.pairs, recipe.comparisons, model=run.policy, judge=run.judge, inputs=inputs):
        return
    planted = _planted(run)
    gated = recipe.comparisons is not None and recipe.comparisons.gate is not None
    if gated and not (stage.path / "gate.json").is_file():
        # Before the pairs, which take the longer: a judge that fails stops the run at once.
        async with run.opened(run.judge) as engine:
            await pass_gate(
                recipe,
                stage,
                constitution=run.constitution,
                engine=engine,
                planted=planted,
                progress=run.progress,
            )
    async with run.opened(run.policy) as engine:
        await sample_pairs(recipe, stage, engine=engine, prompts=run.red_team, progress=run.progress)
    pairs = cast(list[PairRow], list(read_rows(stage.path / "pairs.jsonl")))
    if labelled_by_oracle:
        from solon import sandbox
        from solon.sandbox import oracle

        num = num_helpful(recipe.pairs.per_prompt * len(run.red_team))
        found = helpful_comparisons(sandbox.helpful_pairs(num, seed=recipe.seed), oracle.prefers_helpful)
        write_rows(stage.path / "helpful-comparisons.jsonl", found.rows)
    if recipe.comparisons is None:
        stage.finish(counts={"pairs": len(pairs)})
        return
    async with run.opened(run.judge) as engine:
        await compare(
            recipe,
            stage,
            constitution=run.constitution,
            engine=engine,
            pairs=pairs,
            planted=planted,
            progress=run.progress,
        )


async def preference_model(run: Run) -> None:
    """The labels, and comparisons of helpfulness, train the preference model."""
    from solon.preference import train_preference

    settings = run.recipe.preference
    assert settings is not None
    train_preference(
        _labelled(run),
        model=run.sl_cai if settings.start == "sl-cai" else settings.start,
        stage=run.stage("04-preference-model"),
        config=settings,
        run=_context(run, "04-preference-model"),
    )


async def rl_cai(run: Run) -> None:
    """SL-CAI is trained against the preference model or the judge, or on the comparisons themselves: RL-CAI."""
    from solon.reinforcement import keep_prompts, train_dpo, train_rl

    settings, stage = run.recipe.reinforcement, run.stage("05-rl-cai")
    assert settings is not None
    context = _context(run, "05-rl-cai")
    if settings.algorithm.kind == "dpo":
        train_dpo(_labelled(run), model=run.start, stage=stage, config=settings, run=context)
        return
    prompts = {"all": run.prompts, "red-team": run.red_team, "helpful": run.helpful}[settings.prompts]
    num_kept = settings.held_out.prompts if settings.held_out else 0
    trained, kept = keep_prompts(prompts, num=num_kept, seed=run.recipe.seed)
    train_rl(
        trained,
        model=run.start,
        preference_model=_judge(run) if settings.reward == "judge" else run.made("04-preference-model") / "model",
        stage=stage,
        config=settings,
        run=context,
        held_out=held_out_of(run, kept),
    )


async def evaluation(run: Run) -> None:
    """Every model answers prompts that the method has not seen; an oracle, where there is one, and a judge say how
    well."""
    settings, stage = run.recipe.evaluation, run.folder.stage("06-evaluation")
    assert settings is not None
    models = run.models()
    if "sl-cai" in models:
        run.made("02-sl-cai")
    for name, at in run.policies.items():
        if name in models:
            at.made("05-rl-cai")
    prompts = run.evaluation_prompts()
    inputs = {f"model {name}": fingerprint(config) for name, config in models.items()}
    steps: list[Step] = []
    if settings.revisions and run.recipe.revisions is not None:
        source = run.made("01-revisions") / "revisions.jsonl"
        inputs[source.name] = file_hash(source)
        steps = draw_steps(read_rows(source), num=settings.revisions, seed=run.recipe.seed)
    if not run.begin(
        stage,
        settings,
        run.recipe.comparisons,
        judge=run.evaluation_judge,
        inputs={**inputs, "prompts": content_id(prompts)},
    ):
        return
    async with run.opened(run.evaluation_judge) as engine:
        from solon.sandbox import oracle

        judge = ConstitutionJudge(engine=engine, constitution=run.constitution, settings=run.judging)
        gate = await _evaluation_gate(run, stage, engine=engine)
        trusted = gate is None or gate["passed"] or gate["thresholds"]["on_failure"] == "warn"
        await evaluate(
            stage,
            settings=settings,
            seed=run.recipe.seed,
            field=Field(
                models={name: partial(load_engine, config, logs=run.logs) for name, config in models.items()},
                prompts=prompts,
                oracle=oracle if run.knows_truth else None,
                judge=judge if trusted else None,
                gate=gate,
                verdict_judge=engine if settings.verdicts else None,
                harmfulness_judge=engine if settings.harmfulness else None,
                steps=steps if trusted else (),
                principles=run.constitution.serving("comparison"),
                # A probability that is clamped would never be clear.
                principle_judge=replace(judge, settings=run.judging.model_copy(update={"clamp": None})),
            ),
            more=run.preference_scores(),
            progress=run.progress,
        )


async def _evaluation_gate(run: Run, stage: StageFolder, *, engine: Engine) -> dict[str, Any] | None:
    """What the evaluation's judge did at the gate; None where it need not pass one (again). One who fails is said."""
    if run.evaluation_gate is None:
        return None
    recipe = run.recipe.model_copy(update={"comparisons": run.judging})
    about, _ = await try_gate(
        recipe, stage, constitution=run.constitution, engine=engine, planted=_planted(run), progress=run.progress
    )
    if not about["passed"]:
        problems = "; ".join(about["problems"])
        stage.fail(id="battle-judge", where="battles", reason="not-trusted", text=problems)
        _log.warning(
            "the judge %s fails the gate, %s: %s",
            about["judge"],
            "and nothing is compared in the evaluation (evaluation.judge names another)"
            if about["thresholds"]["on_failure"] == "stop"
            else "and compares all the same",
            problems,
        )
    return about


async def report(run: Run) -> None:
    """One page of everything, from the run's files alone."""
    from solon.report import write_report

    # Again: the stages that were run have by now accepted the recipe, which a refused one must not overwrite.
    run.describe()
    write_report(run.folder.path)


def _known(stages: Collection[str]) -> None:
    unknown = [name for name in stages if name.rpartition("/")[2] not in STAGES]
    if unknown:
        raise InputError(f"no stage is called {', '.join(map(repr, unknown))}", remedy=f"one of {', '.join(STAGES)}")


def _context(run: Run, stage: str) -> RunContext:
    from solon.training import RunContext

    return RunContext(
        seed=run.reseeded.seed,
        again=run.is_again(stage),
        facts=run.facts,
        progress=run.progress,
        launch=run.recipe.launch,
    )


def _labelled(run: Run) -> list[Mapping[str, Any]]:
    """The comparisons that a preference model, or a policy without one, is trained on."""
    rows: list[Mapping[str, Any]] = []
    for at in map(run.at, range(1, run.iteration + 1) if run.recipe.pairs is not None else ()):
        folder = at.made("03-comparisons")
        for name in ("comparisons.jsonl", "helpful-comparisons.jsonl"):
            # Rows are saved as they are done; the order in which that was must not decide what is learnt.
            found = sorted(_rows_if_any(folder / name), key=itemgetter("id"))
            prefix = f"iteration-{at.iteration}/" if at.iteration > 1 else ""
            rows += [{**row, "id": prefix + row["id"]} for row in found] if prefix else found
    settings = run.recipe.preference
    if settings is not None and settings.helpful not in (None, "oracle"):
        rows += [{**row, "source": "helpful"} for row in read_hh(settings.helpful).rows]
    return rows


def _judge(run: Run) -> RolloutJudge:
    """The judge of the comparisons, who must pass their gate here too."""
    from solon.reinforcement import RolloutJudge

    recipe = run.recipe
    settings = recipe.comparisons
    assert settings is not None
    how = content_id([outcome_settings(settings), settings_of(run.judge)])
    gate = partial(pass_gate, recipe, constitution=run.constitution, planted=_planted(run), progress=run.progress)
    return RolloutJudge(
        open=partial(load_engine, run.judge, logs=run.logs),
        constitution=run.constitution,
        settings=settings,
        inputs={"constitution": run.constitution.fingerprint, "judge": fingerprint(run.judge), "judge's settings": how},
        gate=lambda stage, engine: gate(stage, engine=engine),
    )


def _planted(run: Run) -> list[Planted] | None:
    """The sandbox's own pairs with known answers, where the prompts are the sandbox's."""
    gate = run.judging.gate
    if gate is None or run.recipe.prompts.path != "sandbox":
        return None
    from solon import sandbox

    return sandbox.planted_pairs(gate.num, seed=run.recipe.seed)


def _rows_if_any(path: Path) -> Iterable[dict[str, Any]]:
    return read_rows(path) if path.exists() else ()
