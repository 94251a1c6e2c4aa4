"""The lines in which `solon agree` says what judges lean to, and how far two of them agree."""

from __future__ import annotations

from solon.cli.text import clean, shortened
from solon.feedback import JudgeAgreement, JudgeBias
from solon.stats import Interval

PROMPT_SHOWN = 60
"""Characters."""
NO_PAIR = "there is no such pair"


def bias_lines(bias: JudgeBias) -> list[str]:
    """One judge's labels."""
    return [
        clean(f"{bias.judge}: {bias.num_labels} labels, {bias.num_ties} ties"),
        _figure("a is chosen", bias.a_chosen),
        _figure("lead of the place (A)", bias.order_gap),
        _figure("the longer answer is chosen", bias.longer),
        _figure("its own answer is chosen", bias.own),
    ]


def agreement_lines(both: JudgeAgreement) -> list[str]:
    """Two judges of the same pairs."""
    alone = f"{both.num_alone[0]} and {both.num_alone[1]} in one file alone"
    lines = [
        f"together: {both.num_pairs} pairs, {both.num_ties} with a tie; {alone}",
        _figure("agreement", both.agreement),
        _figure(
            "Cohen's kappa", both.kappa, why="a judge chose the same side each time" if both.agreement else NO_PAIR
        ),
        _figure("mean difference of p(a)", both.difference),
        _figure("first less second: the longer answer", both.longer),
        _figure("first less second: the first's own", both.own[0]),
        _figure("second less first: the second's own", both.own[1]),
        *(_figure(f"agreement under {clean(name)}", share) for name, share in both.by_principle.items()),
        "where they differ most: p(a) of each, id, prompt",
    ]
    for one in both.most_different:
        asked = shortened(one.prompt[-1]["content"], length=PROMPT_SHOWN)
        lines.append(f"  {one.p_a[0]:.3f} {one.p_a[1]:.3f}  {clean(one.id)}  {asked}")
    return lines


def _figure(name: str, found: Interval | None, *, why: str = NO_PAIR) -> str:
    if found is None:
        return f"  {name:40}not measured: {why}"
    return f"  {name:40}{found.value:6.3f}  [{found.low:.3f}, {found.high:.3f}]  n {found.n}"
