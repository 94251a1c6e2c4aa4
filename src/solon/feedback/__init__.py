"""AI feedback: a pair of answers under a principle -> the probability that one is better, or unscored with the reason.

    await sample_pairs(recipe, stage, engine=sl_cai, prompts=prompts)                       # 03-comparisons/pairs.jsonl
    await compare(recipe, stage, constitution=constitution, engine=judge, pairs=pairs)      # comparisons.jsonl
    # {"id", "prompt", "chosen", "rejected", "probability", "principles", "order_gap", "answer_mass", "way", ...}
    judge_agreement(read_labels(file), read_labels(another))                                # do two judges agree?

The paper's section 4.1. The judge sees a pair in both orders; its probabilities of the two options are normalised in
each and averaged: a soft label without a preference for a place. A judge that gives no log-probabilities is asked
several times, and its verdicts are counted. What cannot be read is never a number: the pair becomes a failure with the
reason and the judge's words.

Differences from the paper: 1. both orders are asked, where the paper asks one. 2. Several principles may be averaged
for a pair; the paper draws one, and so does the default. 3. A chain of thought is written in each order, and the clamp
is applied to their mean. 4. A judge must pass a gate of pairs with known answers before it labels. 5. What looks like
a part of the question inside the texts that are judged is rewritten. 6. The principle may stand after the two answers;
the default is the paper's layout.
"""

from __future__ import annotations

from solon.feedback.agreement import (
    Difference,
    JudgeAgreement,
    JudgeBias,
    judge_agreement,
    judge_bias,
    read_labels,
)
from solon.feedback.fencing import fence
from solon.feedback.gate import PRIOR_PAIRS, GateResult, Reading, gate_result, gate_result_of, pass_gate, try_gate
from solon.feedback.judging import Judgement, Pair, Way, judge_pair, judge_way
from solon.feedback.labelling import (
    FeedbackRow,
    HelpfulComparisons,
    PairRow,
    compare,
    draw_principles,
    feedback_row,
    helpful_comparisons,
    judge_under_drawn,
    num_helpful,
    read_pairs,
    sample_pairs,
)
from solon.feedback.planted import Planted, planted_exemplars, read_planted, shipped_planted
from solon.feedback.questions import (
    OPTIONS,
    VERDICT_OPTIONS,
    WorkedComparison,
    answer_start,
    comparison_prompt,
    draw_exemplars,
    question_of,
    reasoning_prompt,
    reasoning_start,
    verdict_prompt,
)
from solon.feedback.reading import Verdict, normalise, parse_verdict, seen_mass

__all__ = [
    "OPTIONS",
    "PRIOR_PAIRS",
    "VERDICT_OPTIONS",
    "Difference",
    "FeedbackRow",
    "GateResult",
    "HelpfulComparisons",
    "JudgeAgreement",
    "JudgeBias",
    "Judgement",
    "Pair",
    "PairRow",
    "Planted",
    "Reading",
    "Verdict",
    "Way",
    "WorkedComparison",
    "answer_start",
    "compare",
    "comparison_prompt",
    "draw_exemplars",
    "draw_principles",
    "feedback_row",
    "fence",
    "gate_result",
    "gate_result_of",
    "helpful_comparisons",
    "judge_agreement",
    "judge_bias",
    "judge_pair",
    "judge_under_drawn",
    "judge_way",
    "normalise",
    "num_helpful",
    "parse_verdict",
    "pass_gate",
    "planted_exemplars",
    "question_of",
    "read_labels",
    "read_pairs",
    "read_planted",
    "reasoning_prompt",
    "reasoning_start",
    "sample_pairs",
    "seen_mass",
    "shipped_planted",
    "try_gate",
    "verdict_prompt",
]
