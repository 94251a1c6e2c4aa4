"""When to distrust a rising score: tests of drift with a stated rate of false alarms, and a controller of the KL.

A preference model is right about answers like those it was trained on. Pushed away from them, a policy finds what the
model overrates: its score goes on rising while the answers get worse (Gao et al. 2022, arXiv:2210.10760). Signs:

    boilerplate   one phrase is in more of the answers than in those of the first steps, by more than a tolerance
    length        answers have become longer or shorter than those of the first steps, by more than a ratio
    judge         on held-out prompts a judge that nothing was optimised against finds the answers worse than those of
                  the start, and the preference model does not, so that training on will not mend it

Each sign is tested after every batch (`judge`: at every check) at a level so small that all tests of a run together
give a false alarm with a probability of at most `alarm.false_alarm_rate` (Bonferroni: the rate is divided among the
causes that are tested, and a cause's share among its tests). A prompt is the unit: answers to one prompt are alike.

    alarms = Alarms(settings, num_batches=40, num_checks=4, dimensions=["harmlessness"])
    for batch in batches:
        raised = alarms.after_batch(batch)       # [] or [Alarm(step=12, cause="boilerplate", ...)]

What is assumed: the prompts of the first and of the latest batches are drawn alike (they are shuffled), and means over
some tens of prompts are near enough to normal for Welch's interval. The judge's test is exact.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Any, TypedDict, cast

from solon.artifact import canonical_json
from solon.config import Alarm as AlarmSettings
from solon.dialogue import Message
from solon.wording import phrase_shares, phrases

KL_GAIN = 0.1
"""K_beta of Ziegler et al. 2019, section 2.2."""
KL_CLIP = 0.2
"""The relative error counts as this at most, either way (ibid.)."""
DIMENSIONS = {"red-team": "harmlessness", "helpful": "helpfulness"}
"""What the judge looks at, by the kind of the prompt."""
DRIFTS = ("boilerplate", "length")
SCORE_LEVEL = 0.05
"""One-sided level at which the preference model counts as finding the answers worse, as the judge does. Then there is
no alarm, so that this can only lower the rate of false ones."""


# ---- the controller of the KL


@dataclass(slots=True)
class KLController:
    """Moves beta so that the KL comes to a target: the proportional controller of Ziegler et al. 2019
    (arXiv:1909.08593, section 2.2), beta <- beta (1 + KL_GAIN clip((KL - target) / target, -KL_CLIP, KL_CLIP)).

    Its state is beta, a function of the KLs seen so far: a resumed run gives it the same ones again.
    """

    beta: float
    """In force for the next batch; > 0."""
    target: float
    """Mean log pi(y|x) - log pi_0(y|x) of an answer, in nats; > 0."""

    def update(self, kl: float) -> None:
        """After a batch with the mean sequence KL `kl` in nats, which an estimate may put below 0."""
        error = max(-KL_CLIP, min(KL_CLIP, (kl - self.target) / self.target))
        self.beta *= 1 + KL_GAIN * error


# ---- statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """How much greater a mean is now than it was, with the limits of an interval."""

    value: float
    low: float
    high: float


def t_quantile(p: float, *, freedom: float) -> float:
    """Quantile of Student's t by the expansion of Abramowitz and Stegun, 26.7.5: within 1 % from 8 degrees of freedom
    on and up to p = 0.9999."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def rise(before: Sequence[float], now: Sequence[float], *, level: float) -> Rise:
    """mean(now) - mean(before), each limit of which is wrong with probability `level` (Welch 1947).

    The values are means over the answers to one prompt each. Two at least on each side.
    """
    parts = [variance(side) / len(side) for side in (before, now)]
    value, spread = fmean(now) - fmean(before), sum(parts)
    if spread == 0:
        return Rise(value=value, low=value, high=value)
    weights = zip(parts, (len(before), len(now)), strict=True)
    freedom = spread**2 / sum(part**2 / (n - 1) for part, n in weights)
    half = t_quantile(1 - level, freedom=freedom) * math.sqrt(spread)
    return Rise(value=value, low=value - half, high=value + half)


def sign_test(*, better: int, worse: int) -> float:
    """Probability of at least `worse` of the decided cases, if each were better or worse with probability 1/2; exact.

    Ties are left out before. 1 without a decided case. For shares of right answers it is McNemar's exact test.
    """
    n = better + worse
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / 2**n


# ---- what is tested


class Answered(TypedDict):
    """What is needed of a rollout; a row of rollouts.jsonl is one."""

    step: int
    prompt: list[Message]
    completion: list[Message]
    kl: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The answers to one prompt in one batch."""

    texts: tuple[str, ...]
    log_tokens: float
    """Mean logarithm of the number of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A sign of over-optimisation, with its numbers."""

    step: int
    cause: str
    """One of DRIFTS, or "judge: " with one of the dimensions."""
    text: str
    """A sentence for people."""
    value: float
    """The drift: rise of the phrase's share, logarithm of the ratio of lengths, or share of the decided held-out
    answers that are worse."""
    low: float
    """The limits of its interval; of the judge: the p-value and the level that it fell below."""
    high: float
    stop: bool
    """Whether the run stops."""


def groups_of(rows: Sequence[Answered]) -> list[Group]:
    """The answers of a batch by prompt, in the order of the rows."""
    by_prompt: dict[str, list[Answered]] = {}
    for row in rows:
        by_prompt.setdefault(canonical_json(row["prompt"]), []).append(row)
    return [
        Group(
            texts=tuple(row["completion"][-1]["content"] for row in own),
            log_tokens=fmean(math.log(max(1, row["num_tokens"])) for row in own),
        )
        for own in by_prompt.values()
    ]


class Alarms:
    """The tests over one run: fed batch by batch, it says what is alarming, each cause once."""

    def __init__(
        self,
        settings: AlarmSettings,
        *,
        num_batches: int,
        num_checks: int,
        dimensions: Collection[str] = tuple(DIMENSIONS.values()),
    ) -> None:
        """`num_batches` and `num_checks` are those of the whole run, among which the rate of false alarms is shared;
        `dimensions` are those that the judge looks at, none without a judge."""
        self._settings = settings
        share = settings.false_alarm_rate / (len(DRIFTS) + len(dimensions))
        self._batch_level, self._check_level = share / max(1, num_batches), share / max(1, num_checks)
        self._first: list[list[Group]] = []
        self._latest: deque[list[Group]] = deque(maxlen=settings.window)
        self._raised: set[str] = set()

    def after_batch(self, rows: Sequence[Answered]) -> list[Alarm]:
        """The alarms that the rollouts of one more batch raise."""
        groups = groups_of(rows)
        if len(self._first) < self._settings.window:
            self._first.append(groups)
            return []
        self._latest.append(groups)
        if len(self._latest) < self._settings.window:
            return []
        return self._new([self._boilerplate(rows[0]["step"]), self._length(rows[0]["step"])])

    def after_check(
        self, step: int, wins: Mapping[str, Sequence[float]], *, pm_wins: Mapping[str, Sequence[float]] | None = None
    ) -> list[Alarm]:
        """The alarms of a check: for each dimension the probabilities that an answer is better than the start's, by the
        judge and by the preference model; without the latter, the judge's verdict is enough."""
        return self._new(
            [
                self._judge(step, dimension, found, pm_wins=None if pm_wins is None else pm_wins[dimension])
                for dimension, found in wins.items()
            ]
        )

    def known(self, causes: Sequence[str]) -> None:
        """Causes of which an alarm was raised before the run was resumed."""
        self._raised.update(causes)

    def _new(self, found: Sequence[Alarm | None]) -> list[Alarm]:
        new = [alarm for alarm in found if alarm is not None and alarm.cause not in self._raised]
        self._raised.update(alarm.cause for alarm in new)
        return new

    def _sides(self) -> tuple[list[Group], list[Group]]:
        """The groups of the first batches and of the latest."""
        return [one for batch in self._first for one in batch], [one for batch in self._latest for one in batch]

    def _boilerplate(self, step: int) -> Alarm | None:
        """The phrase that rose most is found on every second prompt and tested on the others: what is tested was not
        chosen by the data that test it."""
        (look_before, test_before), (look_now, test_now) = ((side[::2], side[1::2]) for side in self._sides())
        phrase = _most_risen(look_before, look_now)
        if phrase is None or min(len(test_before), len(test_now)) < 2:
            return None
        before, now = ([_share(phrase, one) for one in side] for side in (test_before, test_now))
        found = rise(before, now, level=self._batch_level)
        if found.low <= self._settings.max_phrase_rise:
            return None
        text = (
            f"{phrase!r} is in {fmean(now):.0%} of the answers, at the start it was in {fmean(before):.0%}: "
            f"a rise of at least {found.low:.0%}, and {self._settings.max_phrase_rise:.0%} is allowed"
        )
        return self._alarm(step, "boilerplate", text, found)

    def _length(self, step: int) -> Alarm | None:
        before, now = ([one.log_tokens for one in side] for side in self._sides())
        if min(len(before), len(now)) < 2:
            return None
        found = rise(before, now, level=self._batch_level / 2)
        limit = math.log(self._settings.max_length_ratio)
        if found.low <= limit and found.high >= -limit:
            return None
        text = (
            f"answers are {math.exp(found.value):.2f} times as long as at the start "
            f"({math.exp(found.low):.2f} to {math.exp(found.high):.2f}), and a factor of "
            f"{self._settings.max_length_ratio:g} either way is allowed"
        )
        return self._alarm(step, "length", text, found)

    def _judge(
        self, step: int, dimension: str, wins: Sequence[float], *, pm_wins: Sequence[float] | None
    ) -> Alarm | None:
        better, worse = _counts(wins)
        p = sign_test(better=better, worse=worse)
        if p >= self._check_level:
            return None
        text = (
            f"of {len(wins)} held-out answers {worse} are worse in {dimension} than the start's and {better} better "
            f"(p = {p:.2g}, below {self._check_level:.2g})"
        )
        if pm_wins is not None:
            preferred, not_preferred = _counts(pm_wins)
            if sign_test(better=preferred, worse=not_preferred) < SCORE_LEVEL:
                return None
            text += f"; the preference model does not see it: it prefers {preferred}, the start's {not_preferred} times"
        share = worse / (better + worse)
        return self._alarm(step, f"judge: {dimension}", text, Rise(value=share, low=p, high=self._check_level))

    def _alarm(self, step: int, cause: str, text: str, found: Rise) -> Alarm:
        stop = self._settings.on_alarm == "stop"
        return Alarm(step=step, cause=cause, text=text, value=found.value, low=found.low, high=found.high, stop=stop)


def _counts(wins: Sequence[float]) -> tuple[int, int]:
    """How many are above 1/2, and how many below."""
    return sum(win > 0.5 for win in wins), sum(win < 0.5 for win in wins)


def _share(phrase: str, group: Group) -> float:
    return fmean(phrase in phrases(text) for text in group.texts)


def _most_risen(before: Sequence[Group], now: Sequence[Group]) -> str | None:
    """The phrase whose share of the answers has risen most, the first in the alphabet of several; None for none."""
    shares, earlier = (phrase_shares([text for one in side for text in one.texts]) for side in (now, before))
    risen = {phrase: share - earlier.get(phrase, 0.0) for phrase, share in shares.items()}
    return min(risen, key=lambda phrase: (-risen[phrase], phrase), default=None)


def batches(rows: Iterable[Answered]) -> Iterator[list[Answered]]:
    """The rows of rollouts.jsonl, batch by batch; solon 0.1 did not number them and made one a step."""

    def number(row: Answered) -> int:
        return cast(Mapping[str, Any], row).get("batch", row["step"])

    batch: list[Answered] = []
    for row in rows:
        if batch and number(row) != number(batch[0]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
