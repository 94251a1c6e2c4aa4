"""The gate: before a judge labels, it compares pairs with known answers, with the settings of the run.

    about = await pass_gate(recipe, stage, constitution=constitution, engine=judge)     # gate.json, for the manifest
    # {"passed": True, "accuracy": {"value": 0.94, "low": 0.83, "high": 0.98, "n": 48}, "consistency": ..., ...}

A label means something only if the judge tells a good answer from a bad one, whichever stands first, and answers with
an option at all. What fails one of the thresholds of `comparisons.gate` stops the run before any pair is labelled, or
is said, and stands in the manifest either way. The paper has no gate; it measures its judges on 438 comparisons of
helpfulness, honesty and harmlessness (section 2, figure 4).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, NamedTuple, cast

from solon.artifact import Progress, StageFolder, content_id, derive_seed, read_json, run_chains, silent, write_json
from solon.chain import Chain, Unusable
from solon.config import Comparisons, Gate, Recipe
from solon.constitution import Constitution, Principle
from solon.engine import Engine, Sampling
from solon.errors import InputError
from solon.feedback.judging import Judgement, Pair, judge_pair, judge_way
from solon.feedback.planted import Planted, planted_exemplars, read_planted, shipped_planted
from solon.feedback.questions import draw_exemplars
from solon.stats import Interval, bootstrap_interval, proportion_interval

_log = logging.getLogger(__name__)

PRIOR_PAIRS = 32
"""Planted pairs whose better answer is compared with itself, at most."""
SETTLED = frozenset(
    {"ambiguous", "context-length", "disagreement", "empty", "low-answer-mass", "no-option", "order-gap", "unparseable"}
)
"""Reasons for an unscored pair that are the judge's own and would come again; others are those of a server or a
machine, and a gate that failed with one is asked again when the stage is resumed."""


# ---- types


class Reading(NamedTuple):
    """What the judge said of one planted pair, before any clamp."""

    p_better: float
    """Probability of the better answer, in [0, 1]: the mean of both orders."""
    order_gap: float
    answer_mass: float

    @property
    def right(self) -> bool:
        """Whether the label is on the right side; a tie is not."""
        return self.p_better > 0.5

    @property
    def consistent(self) -> bool:
        """Whether both orders name the same answer."""
        first, second = self.p_better + self.order_gap / 2, self.p_better - self.order_gap / 2
        return (first - 0.5) * (second - 0.5) > 0


class _Tried(NamedTuple):
    """All that a judge said at the gate."""

    read: list[Reading]
    alone: list[float]
    """For each pair that was tried so: probability of the place (A) when the same text stands in both."""
    unscored: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """How a judge did on planted pairs; what could not be measured, because no pair was scored, is None."""

    accuracy: Interval
    """Share of the planted pairs whose label is on the right side; an unscored pair and a tie are wrong."""
    consistency: Interval | None
    """Share of the scored pairs in which both orders name the same answer."""
    position_bias: Interval | None
    """Mean `order_gap` of the scored pairs, in [-1, 1]: how much more probable an answer is when it stands first."""
    prior: Interval | None
    """Mean probability of (A) when both answers are the same text, in [0, 1]; 0.5 is no preference. No threshold is
    set on it: together with `position_bias` it says whether the bias is one for the letter alone."""
    answer_mass: Interval | None
    """Mean of the scored pairs, in [0, 1]."""
    num_unscored: dict[str, int]
    """By reason."""
    problems: tuple[str, ...]
    """A plain sentence for each threshold that is missed."""

    @property
    def passed(self) -> bool:
        return not self.problems

    def under(self, gate: Gate) -> GateResult:
        """The same figures against other thresholds."""
        return replace(self, problems=tuple(line for line, kept in _against(self, gate) if not kept))

    def facts(self) -> dict[str, Any]:
        """The result as JSON holds it; `gate_result_of` is the inverse."""
        return {"passed": self.passed, **asdict(self), "problems": list(self.problems)}


def gate_result_of(about: Mapping[str, Any]) -> GateResult:
    """The inverse of `GateResult.facts`; further keys are passed over."""

    def interval(name: str) -> Interval | None:
        return None if about[name] is None else Interval(**about[name])

    return GateResult(
        accuracy=Interval(**about["accuracy"]),
        consistency=interval("consistency"),
        position_bias=interval("position_bias"),
        prior=interval("prior"),
        answer_mass=interval("answer_mass"),
        num_unscored=dict(about["num_unscored"]),
        problems=tuple(about["problems"]),
    )


# ---- pure functions


def gate_result(
    read: Sequence[Reading], *, alone: Sequence[float], unscored: Mapping[str, int], gate: Gate, seed: int
) -> GateResult:
    """The figures of a judge against the thresholds of `gate`; `seed` is the bootstrap's.

    `read` are the scored pairs, `alone` the probabilities of (A) for two equal texts. Raises ValueError if no pair was
    tried at all.
    """
    num = len(read) + sum(unscored.values())
    consistent = [one.consistent for one in read]
    measured = GateResult(
        accuracy=proportion_interval(sum(one.right for one in read), n=num),
        consistency=proportion_interval(sum(consistent), n=len(read)) if read else None,
        position_bias=_mean([one.order_gap for one in read], seed=seed),
        prior=_mean(alone, seed=seed),
        answer_mass=_mean([one.answer_mass for one in read], seed=seed),
        num_unscored=dict(sorted(unscored.items())),
        problems=(),
    )
    return measured.under(gate)


def _mean(values: Sequence[float], *, seed: int) -> Interval | None:
    return bootstrap_interval(values, statistic=lambda drawn: float(drawn.mean()), seed=seed) if values else None


class _Line(NamedTuple):
    text: str
    kept: bool
    """Whether the threshold is kept."""


def _against(result: GateResult, gate: Gate) -> list[_Line]:
    """Each figure with its threshold."""
    bias = result.position_bias
    figures = (
        ("accuracy", result.accuracy, "at least", "min_accuracy", gate.min_accuracy),
        ("consistency", result.consistency, "at least", "min_consistency", gate.min_consistency),
        ("position_bias", bias, "at most", "max_position_bias", gate.max_position_bias),
        ("answer_mass", result.answer_mass, "at least", "min_answer_mass", gate.min_answer_mass),
    )
    lines: list[_Line] = []
    for name, found, word, setting, threshold in figures:
        wanted = f"{word} {threshold:g} is asked (comparisons.gate.{setting})"
        if found is None:
            lines.append(_Line(f"{name} could not be measured, as no planted pair was scored; {wanted}", False))
            continue
        kept = found.value >= threshold if word == "at least" else abs(found.value) <= threshold
        size = " whatever its sign" if word == "at most" else ""
        figure = f"{name} is {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] on {found.n} planted pairs"
        lines.append(_Line(f"{figure}; {wanted}{size}", kept))
    return lines


def _drawn(
    planted: Sequence[Planted] | None, *, settings: Comparisons, constitution: Constitution, seed: int
) -> list[Planted]:
    """The pairs that the judge is tried on, `gate.num` at most, each once: those of the file that the recipe names,
    else `planted`, else the shipped ones and the constitution's exemplars."""
    gate = settings.gate
    assert gate is not None
    if gate.pairs is not None:
        found: Sequence[Planted] = read_planted(gate.pairs)
    elif planted is not None:
        found = planted
    else:
        # Shown as few-shot examples, they would bring their own answers.
        own = [] if settings.few_shot else planted_exemplars(constitution, seed=seed)
        found = [*shipped_planted(), *own]
    by_id = {one.id: one for one in found}
    if not by_id:
        raise InputError("the gate has no planted pair", remedy="give some, or set comparisons.gate to null")
    return [by_id[id] for id in sorted(by_id, key=lambda id: derive_seed(seed, "planted", id))[: gate.num]]


# ---- asking


async def pass_gate(
    recipe: Recipe,
    stage: StageFolder,
    *,
    constitution: Constitution,
    engine: Engine,
    planted: Sequence[Planted] | None = None,
    progress: Progress = silent,
) -> dict[str, Any] | str:
    """Try the judge on planted pairs (`try_gate`) and stop where it fails; what the manifest says of it, or "off"
    without a gate.

    Raises InputError where the judge fails and `gate.on_failure` is "stop", and for a file of planted pairs that cannot
    be read.
    """
    settings = recipe.comparisons
    assert settings is not None
    gate = settings.gate
    if gate is None:
        return "off"
    about, anew = await try_gate(
        recipe, stage, constitution=constitution, engine=engine, planted=planted, progress=progress
    )
    if not about["passed"]:
        if gate.on_failure == "stop":
            raise _refused(gate_result_of(about), gate=gate, judge=about["judge"])
        # Once: a run tries its judge before it samples pairs, and comes by here again when it labels them.
        _log.log(
            logging.WARNING if anew else logging.DEBUG,
            "the judge %s fails the gate and labels all the same: %s",
            about["judge"],
            "; ".join(about["problems"]),
        )
    return about


async def try_gate(
    recipe: Recipe,
    stage: StageFolder,
    *,
    constitution: Constitution,
    engine: Engine,
    planted: Sequence[Planted] | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Any], bool]:
    """Try the judge on planted pairs with the settings of `comparisons`, which must have a gate, and write gate.json.

    Returns its content (a `GateResult`, with the judge, the thresholds and what was asked), and whether the judge was
    asked now.

    A gate.json that is there is not asked again, but held against the thresholds as they are now; one of other pairs
    is, and one that failed while the engine could not answer. Raises InputError for a file of planted pairs that cannot
    be read.
    """
    settings = recipe.comparisons
    assert settings is not None and settings.gate is not None
    gate, file = settings.gate, stage.path / "gate.json"
    drawn = _drawn(planted, settings=settings, constitution=constitution, seed=recipe.seed)
    asked = content_id([recipe.seed, [one.id for one in drawn]])
    result = _kept(cast(Mapping[str, Any], read_json(file)), asked=asked) if file.is_file() else None
    anew = result is None
    if result is None:
        tried = await _try(drawn, recipe=recipe, engine=engine, constitution=constitution, progress=progress)
        result = gate_result(tried.read, alone=tried.alone, unscored=tried.unscored, gate=gate, seed=recipe.seed)
    else:
        result = result.under(gate)
    about = {
        **result.facts(),
        "judge": engine.capabilities.model,
        "way": judge_way(engine),
        "asked": asked,
        "thresholds": gate.model_dump(),
    }
    write_json(file, about)
    return about, anew


def _kept(about: Mapping[str, Any], *, asked: str) -> GateResult | None:
    if about["asked"] != asked:
        return None
    result = gate_result_of(about)
    return result if result.passed or set(result.num_unscored) <= SETTLED else None


def _refused(result: GateResult, *, gate: Gate, judge: str) -> InputError:
    lines = [f"{'  kept ' if kept else '  MISSED '} {text}" for text, kept in _against(result, gate)]
    unscored = ", ".join(f"{reason}: {n}" for reason, n in result.num_unscored.items())
    lines += [f"  unscored pairs, which count as wrong: {unscored}"] if unscored else []
    remedy = (
        "choose another comparisons.judge, show it worked examples with comparisons.few_shot, or label with it all the "
        "same: comparisons.gate: null, or --no-gate of `solon compare`; another judge or setting needs --again"
    )
    what = f"the judge {judge!r} fails the gate of pairs with known answers, and nothing was labelled:"
    return InputError("\n".join([what, *lines]) + "\n", remedy=remedy)


async def _try(
    drawn: Sequence[Planted], *, recipe: Recipe, engine: Engine, constitution: Constitution, progress: Progress
) -> _Tried:
    """Ask of every pair, and of the first with themselves, in whatever order they are done."""
    settings = recipe.comparisons
    assert settings is not None
    read: dict[int, Reading] = {}
    alone: dict[int, float] = {}
    unscored: Counter[str] = Counter()

    async def ask(number: int) -> None:
        one = drawn[number]
        asking = _Asking(planted=one, engine=engine, settings=settings, constitution=constitution, seed=recipe.seed)
        try:
            read[number] = await asking.compare()
        except Unusable as problem:
            unscored[problem.reason] += 1
        if number < PRIOR_PAIRS:
            # A judge that cannot be read here is counted above.
            p_first = await asking.compare_with_itself()
            if p_first is not None:
                alone[number] = p_first
        progress.advance()

    progress.start("gate: planted pairs", len(drawn), 0)
    try:
        await run_chains(range(len(drawn)), ask, window=settings.window)
    finally:
        progress.end()
    return _Tried([read[i] for i in sorted(read)], [alone[i] for i in sorted(alone)], unscored)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """A planted pair before the judge."""

    planted: Planted
    engine: Engine
    settings: Comparisons
    constitution: Constitution
    seed: int

    async def compare(self) -> Reading:
        """Raises Unusable where it cannot be scored."""
        one = self.planted
        # A judge that always names one place must not find the better answer there.
        better_first = Random(derive_seed(self.seed, one.id, "planted-order")).random() < 0.5
        pair = Pair(one.prompt, one.better, one.worse)
        said = await self._judge(pair if better_first else pair.swapped(), settings=self.settings)
        (p,) = said.p_by_principle.values()
        return Reading(p if better_first else 1 - p, said.order_gap, said.answer_mass)

    async def compare_with_itself(self) -> float | None:
        """Probability of (A) for two equal texts; None where the judge's answer cannot be read."""
        every = self.settings.model_copy(update={"min_answer_mass": 0.0, "max_order_gap": 1.0, "min_agreement": 0.0})
        try:
            said = await self._judge(
                Pair(self.planted.prompt, self.planted.better, self.planted.better), settings=every
            )
        except Unusable:
            return None
        return (1 + said.order_gap) / 2

    async def _judge(self, pair: Pair, *, settings: Comparisons) -> Judgement:
        # The chain's id is of no row: the labels' seeds are what they are without a gate.
        id = f"planted/{self.planted.id}"
        few_shot_seed = derive_seed(self.seed, id, "exemplars")
        return await judge_pair(
            pair,
            chain=Chain(engine=self.engine, id=id, seed=self.seed, sampling=Sampling()),
            settings=settings,
            principles=[Principle(id="planted", comparison=self.planted.question, weight=1.0)],
            exemplars=draw_exemplars(
                self.constitution, k=settings.few_shot, reasoning=settings.reasoning, seed=few_shot_seed
            ),
        )
