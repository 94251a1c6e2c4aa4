"""What a recipe takes before anything is spent: requests, tokens and seconds of every stage.

    found = await plan(load_recipe("recipes/sandbox.yaml"))
    found.total.seconds

Counts are the recipe's arithmetic on the prompts that it names. Tokens are counted on a sample of the prompts with the
model's own tokenizer; time follows from how fast the models read and write in a probe of a few seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from solon.artifact import RunFolder, silent
from solon.config import Recipe
from solon.engine import EngineConfig, FolderEngineConfig, Sampling, without_ray
from solon.plan.arithmetic import Sizes, Step, Who, steps
from solon.plan.memory import PARTS, Memory, recipe_memory
from solon.plan.preflight import check_constitution, preflight
from solon.plan.probe import CHARACTERS_PER_TOKEN, SAMPLE, Speed, measure_sizes, probe, token_counter
from solon.run import Run, opened

__all__ = [
    "PARTS",
    "Memory",
    "Plan",
    "PlanRow",
    "Scaled",
    "Sizes",
    "Speed",
    "Step",
    "Who",
    "check_constitution",
    "measure_sizes",
    "plan",
    "preflight",
    "probe",
    "recipe_memory",
    "scaled",
    "steps",
    "token_counter",
]

PROBE_PROMPTS = 32
"""Prompts that a model answers in the probe, at most."""
TRAINING_FACTOR = 3
"""A token trained on costs a forward and a backward pass: three times what reading it costs (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1)."""
REPLICAS = (1, 10, 100, 1000)
"""Of what was probed, for the time that generation and labels take on several."""


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
class Scaled:
    """Generation and labels on several of what was probed (a GPU, a server, a cluster)."""

    replicas: int
    seconds: float
    requests_per_s: float
    """That the run's one process has to pass on and write down; docs/performance.md has how many it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes."""

    rows: tuple[PlanRow, ...]
    assumptions: str
    """What the numbers rest on, in a sentence or two."""
    memory: tuple[Memory, ...] = ()
    """Of a device in each stage that trains."""
    scale: tuple[Scaled, ...] = ()
    """Empty where nothing is generated or labelled."""

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
    speeds: dict[Who, Speed] = {who: known[config] for who, config in engines.items()}
    sizes = measure_sizes(run, answer=speeds["model"].answer, count=token_counter(recipe.model))
    found = steps(recipe, run, sizes, sampled=[who for who, speed in speeds.items() if not speed.chooses])
    rows = tuple(_priced(step, speeds[step.who]) for step in found if stages is None or step.stage in stages)
    memory = tuple(one for one in recipe_memory(recipe, sizes) if stages is None or one.stage in stages)
    settings = recipe.revisions
    texts = 1 if settings is None else 1 + settings.rounds * (2 if settings.critique else 1)
    return Plan(
        rows=rows,
        memory=memory,
        scale=scaled(rows, chain_s=texts * sizes.answer / speeds["model"].alone),
        assumptions=_assumptions(recipe, sizes, speeds["model"], sampling=sampling),
    )


def scaled(rows: Sequence[PlanRow], *, chain_s: float) -> tuple[Scaled, ...]:
    """Times on REPLICAS: the work of the stages that ask engines, divided; never less than `chain_s`, the seconds of
    one chain alone. Rollouts are not among it, because the trainer makes them."""
    asked = [row for row in rows if row.requests and row.stage != "05-rl-cai"]
    work_s, requests = sum(row.seconds for row in asked), sum(row.requests for row in asked)
    if not requests:
        return ()
    times = ((num, max(work_s / num, chain_s)) for num in REPLICAS)
    return tuple(Scaled(replicas=num, seconds=time_s, requests_per_s=requests / time_s) for num, time_s in times)


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
    local = isinstance(without_ray(recipe.model), FolderEngineConfig)
    counted = "the model's tokenizer" if local else f"{CHARACTERS_PER_TOKEN} characters a token"
    return (
        f"Assumed: {sizes.num_red_team} red-team and {sizes.num_helpful} helpful prompts of {sizes.prompt:.0f} tokens "
        f"(by {counted}, on at most {SAMPLE}); answers of "
        f"{sizes.answer:.0f} tokens of at most {sampling.max_new_tokens}; "
        f"a probe just now read {speed.reads:,.0f} and wrote {speed.writes:,.0f} tokens/s; a token trained on costs "
        f"{TRAINING_FACTOR} read ones. Loading and saving are not counted, nor is what other work on the machine takes."
    )
