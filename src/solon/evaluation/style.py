"""How answers are worded, whoever knows whether they are right: length, diversity, repetition, boilerplate, refusals.

A policy that has collapsed or that games its reward shows here: its answers grow or shrink, repeat themselves, resemble
each other or share a phrase. Words are what white space separates (`solon.wording`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from solon.evaluation.rows import ResponseRow, Score, ordered_models, score_row
from solon.evaluation.truth import Case
from solon.stats import Interval, clustered_interval, jackknife_interval, paired_ratio, proportion_interval
from solon.wording import boilerplate, distinct, is_refusal, repetition


def style_cases(responses: Sequence[ResponseRow]) -> dict[str, list[Case]]:
    """What each of one model's answers counts in the metrics that are means over answers.

    words: number of words; repetition: see `solon.wording.repetition`; sounds_declining:KIND: 1 where the answer to a
    prompt of that kind has a phrase of `solon.wording.REFUSALS`.
    """
    found: dict[str, list[Case]] = {"words": [], "repetition": []}
    for row in responses:
        text = row["response"]
        values = {"words": float(len(text.split())), "repetition": repetition(text)}
        values[f"sounds_declining:{row['kind']}"] = float(is_refusal(text))
        for metric, value in values.items():
            cluster = row["activity"] or row["prompt_id"]
            found.setdefault(metric, []).append(Case(row["prompt_id"], cluster, value))
    return {metric: cases for metric, cases in found.items() if cases}


def style_scores(responses: Sequence[ResponseRow], *, seed: int, reference: str = "helpful") -> list[Score]:
    """How each model words its answers to all prompts.

    words_ratio: words, relative to those of `reference` on the same prompts (paired bootstrap over prompts);
    repetition: mean over answers (Wilson's interval, with a design effect of alike prompts);
    sounds_declining:KIND: share of answers that sound like a refusal (the same);
    distinct_2: different pairs of words over all pairs (jackknife); it falls with the number of answers, so only models
    that answered the same prompts compare;
    boilerplate: share of answers with the phrase that most of them have (Wilson's interval for that phrase).
    """
    scores: list[Score] = []
    words = {model: _words(responses, model=model) for model in {row["model"] for row in responses}}
    for model in ordered_models(set(words)):
        own = [row for row in responses if row["model"] == model]
        texts = [row["response"] for row in own]
        found: dict[str, Interval] = {}
        both = sorted(words[model].keys() & words.get(reference, {}).keys())
        before = [words[reference][key] for key in both] if both else []
        if any(before):
            found["words_ratio"] = paired_ratio([words[model][key] for key in both], baseline=before, seed=seed)
        for metric, cases in style_cases(own).items():
            if metric != "words":
                found[metric] = clustered_interval(
                    [case.value for case in cases], clusters=[case.cluster for case in cases]
                )
        found["distinct_2"] = jackknife_interval(texts, statistic=partial(distinct, n=2))
        found["boilerplate"] = proportion_interval(boilerplate(texts) * len(texts), n=len(texts))
        scores += [
            score_row(model, metric=name, interval=interval, way="words", seed=seed) for name, interval in found.items()
        ]
    return scores


def _words(responses: Sequence[ResponseRow], *, model: str) -> Mapping[str, float]:
    return {row["prompt_id"]: float(len(row["response"].split())) for row in responses if row["model"] == model}
