"""What is measured on held-out comparisons: accuracy, baselines, calibration, and the temperature that mends it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solon.artifact import derive_seed
from solon.preference.pairs import Pair
from solon.stats import (
    Interval,
    Reliability,
    bootstrap_interval,
    calibration_error,
    fit_temperature,
    log_losses,
    proportion_interval,
    reliability,
    reliability_of,
    sigmoid,
)

Floats = NDArray[np.float64]

FEWEST_FOR_TEMPERATURE = 20
"""Held-out pairs below which no temperature is fitted; it is 1 then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How the preference model does on pairs that it has not seen.

    Its leads are raw_a - raw_b; "scaled" is what is divided by a temperature that was fitted on other prompts.
    """

    accuracy: Mapping[str, Interval]
    """By source, and "all": share of the decisive pairs (probability not 0.5) whose better reply scores higher."""
    shorter: Interval | None
    """The baseline "the shorter reply is better" on the same pairs, None where none is decisive. Equal is wrong."""
    longer: Interval | None
    calibration_error: Interval | None
    """Expected calibration error of sigmoid(lead) against the labels, in [0, 1]; None without pairs. The interval is a
    bootstrap over pairs; a resample is a little worse calibrated than the pairs themselves."""
    calibration_error_by_source: Mapping[str, Interval]
    """The same for the pairs of each source."""
    calibration_error_scaled: Interval | None
    """The same, scaled; None where no temperature was fitted."""
    reliability: Reliability | None
    """The bins behind `calibration_error`."""
    reliability_scaled: Reliability | None
    """The bins behind `calibration_error_scaled`."""
    log_loss: Interval | None
    """Mean log loss of sigmoid(lead) against the labels in nats, which for labels that are probabilities is never below
    their mean entropy; a bootstrap over pairs."""
    log_loss_scaled: Interval | None
    temperature: float
    """Fitted on all held-out pairs, what `PreferenceModel.probability` divides by; 1 where there are fewer than
    FEWEST_FOR_TEMPERATURE pairs or a single prompt. Above 1: the leads are too large."""
    absolute_error: float | None
    """Mean distance of sigmoid(lead) from the label, in [0, 1]."""
    num_ties: int
    """Held-out pairs with probability 0.5: in the calibration, not in the accuracy."""


def measure(pairs: Sequence[Pair], *, leads: Sequence[float]) -> Measured:
    """Accuracy, baselines and calibration of raw leads r(chosen) - r(rejected) on held-out pairs; a lead of 0 is wrong.

    For the calibration every pair counts from both sides, because which reply is called `chosen` depends on the label.
    """
    decisive = [(pair, lead) for pair, lead in zip(pairs, leads, strict=True) if pair.probability != 0.5]
    right: dict[str, list[bool]] = defaultdict(list)
    for pair, lead in decisive:
        correct = (lead > 0) if pair.probability > 0.5 else (lead < 0)
        right["all"].append(correct)
        right[pair.source].append(correct)
    shorter = [_is_shorter(pair if pair.probability > 0.5 else pair.swapped()) for pair, _ in decisive]
    longer = [_is_shorter(pair.swapped() if pair.probability > 0.5 else pair) for pair, _ in decisive]
    lead_N = np.asarray(leads, dtype=np.float64)
    label_N = np.array([pair.probability for pair in pairs], dtype=np.float64)
    fitted_N = cross_fitted(pairs, leads=leads)
    scaled_N = None if fitted_N is None else lead_N / fitted_N
    return Measured(
        accuracy={source: _share(values) for source, values in right.items()},
        shorter=_share(shorter) if shorter else None,
        longer=_share(longer) if longer else None,
        calibration_error=_calibration_error(lead_N, label_N) if pairs else None,
        calibration_error_by_source=_calibration_by_source(pairs, lead_N=lead_N, label_N=label_N),
        calibration_error_scaled=None if scaled_N is None else _calibration_error(scaled_N, label_N),
        reliability=_reliability(lead_N, label_N) if pairs else None,
        reliability_scaled=None if scaled_N is None else _reliability(scaled_N, label_N),
        log_loss=_log_loss(lead_N, label_N) if pairs else None,
        log_loss_scaled=None if scaled_N is None else _log_loss(scaled_N, label_N),
        temperature=1.0 if fitted_N is None else fit_temperature(lead_N, labels=label_N),
        absolute_error=float(np.abs(sigmoid(lead_N) - label_N).mean()) if pairs else None,
        num_ties=len(pairs) - len(decisive),
    )


def cross_fitted(pairs: Sequence[Pair], *, leads: Sequence[float]) -> Floats | None:
    """For each pair the temperature that fits the pairs of the other half of the prompts.

    So that what is measured with it was not fitted on the same prompts. Which prompts are in which half follows from
    the prompts alone. None for fewer than FEWEST_FOR_TEMPERATURE pairs, or one prompt.
    """
    groups = [pair.group for pair in pairs]
    in_order = sorted(set(groups), key=lambda group: derive_seed("temperature", group))
    if len(pairs) < FEWEST_FOR_TEMPERATURE or len(in_order) < 2:
        return None
    second = set(in_order[1::2])
    is_second_N = np.array([group in second for group in groups])
    lead_N = np.asarray(leads, dtype=np.float64)
    label_N = np.array([pair.probability for pair in pairs], dtype=np.float64)
    of_first, of_second = (
        fit_temperature(lead_N[half_N], labels=label_N[half_N]) for half_N in (~is_second_N, is_second_N)
    )
    return np.where(is_second_N, of_first, of_second)


def _reliability(lead_N: Floats, label_N: Floats) -> Reliability:
    predicted_N, outcome_N = _both_sides(lead_N, label_N)
    return reliability(predicted_N, outcomes=outcome_N)


def _both_sides(lead_N: Floats, label_N: Floats) -> tuple[Floats, Floats]:
    """Predicted and labelled probabilities of every pair, told from the one side and then from the other."""
    predicted_N = np.concatenate([sigmoid(lead_N), sigmoid(-lead_N)])
    return predicted_N, np.concatenate([label_N, 1 - label_N])


def _calibration_error(lead_N: Floats, label_N: Floats) -> Interval:
    def error(rows_N2: Floats) -> float:
        predicted_N, outcome_N = _both_sides(rows_N2[:, 0], rows_N2[:, 1])
        return calibration_error(predicted_N, outcomes=outcome_N)

    found = bootstrap_interval(
        np.column_stack([lead_N, label_N]),
        statistic=error,
        seed=derive_seed("calibration", len(lead_N)),
        draws=200,
    )
    return replace(found, low=min(found.low, found.value))


def _calibration_by_source(pairs: Sequence[Pair], *, lead_N: Floats, label_N: Floats) -> dict[str, Interval]:
    source_N = np.array([pair.source for pair in pairs], dtype=object)
    sources = sorted({pair.source for pair in pairs})
    return {one: _calibration_error(lead_N[source_N == one], label_N[source_N == one]) for one in sources}


def _log_loss(lead_N: Floats, label_N: Floats) -> Interval:
    return bootstrap_interval(
        log_losses(lead_N, labels=label_N),
        statistic=lambda losses_N: float(losses_N.mean()),
        seed=derive_seed("log loss", len(lead_N)),
    )


def _is_shorter(pair: Pair) -> bool:
    return len(pair.chosen) < len(pair.rejected)


def _share(values: Sequence[bool]) -> Interval:
    return proportion_interval(sum(values), n=len(values))


def measured_of(about: Mapping[str, Any]) -> Measured:
    """The inverse of `asdict`; what solon 0.1 did not measure is empty, None or (the temperature) 1."""

    def interval(name: str) -> Interval | None:
        return Interval(**about[name]) if about.get(name) else None

    def bins(name: str) -> Reliability | None:
        return reliability_of(about[name]) if about.get(name) else None

    def intervals(name: str) -> dict[str, Interval]:
        return {source: Interval(**value) for source, value in about.get(name, {}).items()}

    return Measured(
        accuracy=intervals("accuracy"),
        shorter=interval("shorter"),
        longer=interval("longer"),
        calibration_error=interval("calibration_error"),
        calibration_error_by_source=intervals("calibration_error_by_source"),
        calibration_error_scaled=interval("calibration_error_scaled"),
        reliability=bins("reliability"),
        reliability_scaled=bins("reliability_scaled"),
        log_loss=interval("log_loss"),
        log_loss_scaled=interval("log_loss_scaled"),
        temperature=about.get("temperature", 1.0),
        absolute_error=about["absolute_error"],
        num_ties=about["num_ties"],
    )
