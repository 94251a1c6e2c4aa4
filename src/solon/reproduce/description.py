"""What an experiment is, as its file in recipes/reproduce/ says: which arms it trains, what it measures on them, what
the paper lets one expect. Nothing here runs anything.

arms.yaml has the arms, which experiments share; every other file is one experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from solon.artifact import content_id
from solon.config import load_recipe, shipped_recipe
from solon.config.section import Section
from solon.constitution import Constitution
from solon.errors import InputError

ARMS = "arms"
"""The file of the arms, beside those of the experiments."""
StageName = Literal["01-revisions", "02-sl-cai", "03-comparisons", "04-preference-model", "05-rl-cai"]
Crowd = Literal["helpful", "harmless"]


class Arm(Section):
    """One way of training, as a change of the recipe that all arms start from."""

    about: str
    """What it is, in a few words: its name in pictures and tables."""
    set: tuple[str, ...] = ()
    """Changes of settings, as for --set; {helpful} and {base} stand for the sandbox's two models of a size."""
    shares: tuple[StageName, ...] = ()
    """Stages that are those of the first arm; they are not run again."""
    stages: tuple[StageName, ...]
    """Stages that the arm runs itself."""
    people: tuple[Crowd, ...] = ()
    """Whose comparisons the preference model is trained on, in place of a judge's: the oracle as people who compare how
    helpful answers are, or how harmless. The policy then starts from the pretrained model: RLHF."""
    principles: int | None = Field(default=None, ge=1)
    """That many of the constitution's principles, drawn with the run's seed; null: all of them."""
    principle: str | None = None
    """That one alone."""


class Arms(Section):
    """The file of the arms."""

    recipe: str
    """A recipe that ships; every arm is a change of it."""
    quick: tuple[str, ...]
    """Changes of settings for --quick: the least that runs."""
    quick_samples: int = Field(ge=1)
    """And the number of answers, pairs and dialogues that are measured then."""
    arms: dict[str, Arm]
    """By name; the first is the method itself, whose stages others share."""

    @cached_property
    def first(self) -> str:
        return next(iter(self.arms))

    @model_validator(mode="after")
    def _arms_fit_together(self) -> Arms:
        first = self.arms[next(iter(self.arms))]
        for name, arm in self.arms.items():
            if missing := set(arm.shares) - set(first.stages):
                raise PydanticCustomError(
                    "arms", "{what}", {"what": f"arms.{name}.shares: {sorted(missing)} is not run"}
                )
            if set(arm.shares) & set(arm.stages):
                raise PydanticCustomError("arms", "{what}", {"what": f"arms.{name}: a stage is shared and run"})
        return self


# ---- what is measured


class Policies(Section):
    """Policies answer prompts about activities kept for evaluation, and the oracle judges the answers.

    Metrics: those of `evaluation.verdict_scores`; `boilerplate` and `distinct_2` of the answers to harmful requests;
    elo_harmlessness and elo_helpfulness, all policies of the experiment against each other, by the oracle.
    """

    kind: Literal["policies"] = "policies"
    paths: tuple[str, ...] = ()
    """Arms of which every snapshot is asked, the start being step 0; x is the step of reinforcement."""
    models: dict[str, Literal["base", "helpful"]] = Field(default={})
    """Models that no arm trains, by the name of their series: the pretrained one, the helpful-only assistant."""
    finals: tuple[str, ...] = ()
    """Arms of which the end alone is asked; they have no x, or beside `sizes` the largest model's."""
    sizes: tuple[str, ...] = ()
    """Arms that are trained for every size of model, and asked at the end; x is millions of parameters."""
    anchor: str
    """Whose Elo is 0: "ARM@X", or "ARM" for its last."""
    samples: int = Field(default=100, ge=1)
    """Prompts of each kind."""
    greedy: bool = False
    """True: the harmful requests are also answered at temperature 0; such series are called "NAME, T = 0"."""


class Revised(Section):
    """The answers of each round of revision, scored by preference models that people's comparisons trained.

    Metrics: pm:ARM, the mean score less that of the first answers of the largest model, in units of the scores' spread;
    explains, the share that declines with a reason, by the oracle; distinct_2.
    """

    kind: Literal["revisions"] = "revisions"
    arms: tuple[str, ...]
    scorers: tuple[str, ...]
    """Arms whose preference models score."""
    sizes: bool = False
    """True: every size of model revises; the series' names have the size, the scorers are the largest model's."""
    x: Literal["round", "principles"] = "round"
    """What the points lie along: all rounds, or the last round by the arm's number of principles."""


class Way(Section):
    """How a judge is asked."""

    model: Literal["base", "helpful"] = "base"
    """The pretrained model, or the assistant."""
    reasoning: bool = False
    """True: it thinks step by step first."""
    samples: int = Field(default=1, ge=1)
    """Chains of thought per order of the two answers, whose probabilities are averaged."""


class Judges(Section):
    """Judges say which of two answers is better where that is known; harmful requests under a principle, others by
    which helps more.

    Metrics: accuracy, a tie being wrong; calibration_error of the probabilities; and the reliability diagram.
    """

    kind: Literal["judges"] = "judges"
    ways: dict[str, Way]
    """By the name of the series."""
    preference_models: tuple[str, ...] = ()
    """Arms whose preference models are asked too."""
    sizes: bool = False
    principle: str = "any-harm"
    """Under which harmful requests are judged."""
    pairs: int = Field(default=150, ge=2)


class PreferenceModels(Section):
    """Preference models of arms on pairs of which the better answer is known.

    Metrics: pm_accuracy, pm_calibration_error against the truth, label_accuracy of the labels that it was trained on,
    where the truth decides.
    """

    kind: Literal["preference-models"] = "preference-models"
    arms: tuple[str, ...]
    pairs: int = Field(default=400, ge=2)


AnyMeasure = Annotated[Policies | Revised | Judges | PreferenceModels, Field(discriminator="kind")]


# ---- what is shown and expected


class Picture(Section):
    """One panel."""

    kind: Literal["lines", "bars", "path", "reliability"]
    """lines: y along x; bars: one for each series; path: the metric y against the metric x, in the order of x."""
    y: str = ""
    """A metric."""
    x: str = ""
    """Of a path: the other metric."""
    title: str
    x_label: str = ""
    y_label: str = ""


class Expected(Section):
    """What the paper lets one expect, as an ordering of points of one metric.

    A point is "SERIES" (the last one along x) or "SERIES@X", with X a number, "first" or "last".
    """

    says: str
    metric: str
    rising: tuple[str, ...] = ()
    """Each point is above the one before: it came out if their 95 % intervals are apart."""
    alike: tuple[str, ...] = ()
    """Two points that differ by less than `within`: it came out if the interval of the difference lies inside."""
    within: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> Expected:
        if (len(self.rising) >= 2) == (len(self.alike) == 2):
            raise PydanticCustomError("expected", "give two or more `rising`, or two `alike`")
        return self


class Experiment(Section):
    """One figure or ablation of the paper."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    paper: str
    """Where in the paper: "figures 2 and 8"."""
    figures: tuple[int, ...] = ()
    """Numbers of figures, by which the experiment may be asked for too."""
    title: str
    differs: str
    """What is not as in the paper."""
    world: str
    """What of so small a world may keep the expected from coming out; shown where it does not."""
    names: dict[str, str] = Field(default={})
    """What arms are called here, where that is not what they are called elsewhere."""
    measures: tuple[AnyMeasure, ...]
    pictures: tuple[Picture, ...]
    expected: tuple[Expected, ...]

    def arms(self) -> list[str]:
        """Names of the arms that are needed."""
        return list(dict.fromkeys(name for measure in self.measures for name in arms_of(measure)))


def arms_of(measure: Policies | Revised | Judges | PreferenceModels) -> Iterator[str]:
    """Names of the arms that a measure needs."""
    if isinstance(measure, Policies):
        yield from (*measure.paths, *measure.finals, *measure.sizes)
    elif isinstance(measure, Revised):
        yield from (*measure.arms, *measure.scorers)
    elif isinstance(measure, Judges):
        yield from measure.preference_models
    else:
        yield from measure.arms


# ---- the files

_Read = TypeVar("_Read", bound=Section)


def read_arms() -> Arms:
    """The arms that ship."""
    return _read(shipped_recipe(f"reproduce/{ARMS}"), Arms)


def read_experiments() -> dict[str, Experiment]:
    """All experiments that ship, by name, in the order of the paper. Raises InputError for a broken file."""
    folder = shipped_recipe(f"reproduce/{ARMS}").parent
    found = [_read(path, Experiment) for path in sorted(folder.glob("*.yaml")) if path.stem != ARMS]
    ordered = sorted(found, key=lambda one: (min(one.figures, default=99), one.paper, one.name))
    return {one.name: one for one in ordered}


def chosen(names: Sequence[str], *, experiments: dict[str, Experiment]) -> list[Experiment]:
    """The experiments asked for by name, or by a figure as "5", "fig5" or "figure-5"; all for none.

    Raises InputError for a name that is not there.
    """
    found: list[str] = []
    for name in names:
        number = name.lower().removeprefix("figure").removeprefix("fig").strip("-. ")
        own = [
            key for key, one in experiments.items() if key == name or (number.isdigit() and int(number) in one.figures)
        ]
        if not own:
            raise InputError(f"no experiment is called {name!r}", remedy=f"known: {', '.join(experiments)}")
        found += own
    return [one for key, one in experiments.items() if not names or key in found]


def fingerprint(experiment: Experiment, *, arms: Arms, about: object) -> str:
    """What decides an experiment's figures: what it measures, the arms that it needs, their recipe and its
    constitution, and `about`. How it is shown and what is expected of it may change."""
    recipe = load_recipe(shipped_recipe(arms.recipe))
    needed = {name: arms.arms[name].model_dump(mode="json") for name in (arms.first, *experiment.arms())}
    measures = [one.model_dump(mode="json") for one in experiment.measures]
    constitution = Constitution.load(recipe.constitution).fingerprint
    return content_id([measures, needed, recipe.resolved(), constitution, about])


def _read(path: Path, section: type[_Read]) -> _Read:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return section.model_validate(data)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", path=path) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise InputError("\n".join(problems), path=path) from error
