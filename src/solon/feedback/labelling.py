"""The rows of AI feedback and the loops that write them: pairs of answers, then comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from solon.artifact import Progress, StageFolder, content_id, derive_seed, read_numbered_rows, read_rows, silent
from solon.chain import Chain, RowLoop, Unusable, constitution_facts
from solon.config import Comparisons, Recipe
from solon.constitution import Constitution, Principle
from solon.dialogue import ComparisonRow, Message, PromptRow, dialogue_of, reply, tidy
from solon.engine import Engine, Sampling
from solon.errors import ROWS_SHOWN, InputError
from solon.feedback.gate import pass_gate
from solon.feedback.judging import Judgement, Pair, judge_pair, judge_way
from solon.feedback.planted import Planted
from solon.feedback.questions import draw_exemplars

# ---- rows


class PairRequest(TypedDict):
    """A pair of answers that is wanted."""

    id: str
    """The prompt's id, a slash, and the number of the pair from 1."""
    prompt_id: str
    prompt: list[Message]
    kind: str
    """Of the prompt: "red-team" or "helpful"."""
    activity: NotRequired[str]
    """Sandbox only, as in prompts.jsonl; `category` too."""
    category: NotRequired[str]


class PairRow(PairRequest):
    """A row of pairs.jsonl: two different answers to one prompt."""

    a: str
    b: str
    truncated: list[str]
    """Which of "a" and "b" were cut at the token limit."""
    a_by: NotRequired[str]
    """Name of the model that wrote a, where it is known, and of b; what `judge_bias` looks for self-preference by."""
    b_by: NotRequired[str]


class FeedbackRow(ComparisonRow):
    """A row of comparisons.jsonl; `source` is "ai", or "helpful" for a comparison of helpfulness."""

    probability: float
    """That `chosen` is better, in [0.5, 1]; at 0.5 the pair's a is `chosen`."""
    a_is_chosen: bool
    """Whether `chosen` is the pair's a, so that a preference for a place can be looked for."""
    principles: list[str]
    """Ids of the principles that were drawn."""
    p_by_principle: dict[str, float]
    """Probability that `chosen` is better under each principle, in [0, 1], before any clamp."""
    order_gap: float | None
    """See Judgement; None where no model judged, like the next three."""
    answer_mass: float | None
    agreement: float | None
    interval: list[float] | None
    """Where verdicts were sampled: 95 % limits [low, high] of the probability that `chosen` is better, before any
    clamp."""
    way: str
    """"logprobs" or "sampled"; "given" where no model judged."""
    judge: str
    verdicts: dict[str, int] | None
    """Where sampled: how many were "read", and how many were not, by reason."""
    reasoning: list[str]
    """The chains of thought, where there are any: for each principle those with the pair's a first, then those with b
    first."""
    fenced: list[str]
    """Which of "prompt", "a" and "b" the judge was shown with changes, see `fence`."""
    truncated: list[str]
    """What was cut at the token limit: "a", "b", "reasoning-PRINCIPLE", and "reasoning-PRINCIPLE/1" for the second of
    several chains."""
    tokens: dict[str, int]
    """Tokens of the judge's texts, read ("prompt") and written ("completion"); `choose` is not counted."""
    prompt_id: str
    kind: str
    a_by: NotRequired[str]
    """Of the pair, like any further column of it."""
    b_by: NotRequired[str]
    activity: NotRequired[str]
    category: NotRequired[str]


class HelpfulComparisons(NamedTuple):
    """Comparisons of helpfulness, and how many pairs have none."""

    rows: list[FeedbackRow]
    num_ties: int
    """Pairs left out because neither answer is the more helpful one."""


# ---- pure functions on rows


def num_helpful(num_pairs: int) -> int:
    """How many comparisons of helpfulness go with so many of harmlessness, in the paper's ratio (section 4.2)."""
    return round(num_pairs * 135_296 / 182_831)


def feedback_row(pair: PairRow, judgement: Judgement, *, judge: str, chain: Chain) -> FeedbackRow:
    """The comparison that a judgement makes of a pair; the better answer is `chosen`."""
    # Rounding hides what the make-up of a batch does to the last digits, so that a resumed run has the same rows.
    p_a = round(judgement.probability, 6)
    seen = judgement if p_a >= 0.5 else judgement.swapped()
    thoughts_cut = [where for where in dict.fromkeys(chain.truncated) if where.startswith("reasoning-")]
    details = {
        "source": "ai",
        "principles": list(seen.p_by_principle),
        "p_by_principle": {name: round(p, 6) for name, p in seen.p_by_principle.items()},
        "order_gap": round(seen.order_gap, 6),
        "answer_mass": round(seen.answer_mass, 6),
        "agreement": seen.agreement,
        "interval": None if seen.interval is None else [round(limit, 6) for limit in seen.interval],
        "way": seen.way,
        "judge": judge,
        "verdicts": seen.verdicts,
        "reasoning": list(seen.reasoning),
        "fenced": list(judgement.fenced),
        "truncated": [*pair["truncated"], *thoughts_cut],
        "tokens": chain.tokens,
    }
    return _row(pair, p_a, details=details)


def helpful_comparisons(
    pairs: Iterable[PairRow], prefers: Callable[[Sequence[Message], str, str], float], *, judge: str = "oracle"
) -> HelpfulComparisons:
    """Comparisons with source "helpful"; `prefers(prompt, a, b)` is the probability that a is the more helpful.

    It stands in for the people of the paper, whose comparisons of helpfulness are human (section 4.1). Pairs with 0.5
    are left out and counted.
    """
    rows: list[FeedbackRow] = []
    num_ties = 0
    for pair in pairs:
        p = prefers(pair["prompt"], pair["a"], pair["b"])
        if p == 0.5:
            num_ties += 1
            continue
        details = {
            "source": "helpful",
            "principles": [],
            "p_by_principle": {},
            "order_gap": None,
            "answer_mass": None,
            "agreement": None,
            "interval": None,
            "way": "given",
            "judge": judge,
            "verdicts": None,
            "reasoning": [],
            "fenced": [],
            "truncated": pair["truncated"],
            "tokens": {"prompt": 0, "completion": 0},
        }
        rows.append(_row(pair, p, details=details))
    return HelpfulComparisons(rows, num_ties)


def _row(pair: PairRow, p_a: float, *, details: Mapping[str, object]) -> FeedbackRow:
    """The columns of the pair, its answers in the order of preference, and `details`."""
    a_is_chosen = p_a >= 0.5
    chosen, rejected = (pair["a"], pair["b"]) if a_is_chosen else (pair["b"], pair["a"])
    about = {name: value for name, value in pair.items() if name not in ("a", "b", "truncated")}
    labels = {
        "chosen": [reply(chosen)],
        "rejected": [reply(rejected)],
        "probability": round(max(p_a, 1 - p_a), 6),
        "a_is_chosen": a_is_chosen,
    }
    return cast(FeedbackRow, {**about, **labels, **details})


def read_pairs(path: str | Path) -> list[PairRow]:
    """Anyone's pairs: JSON lines with `prompt` (messages that end with a human turn, or a transcript), `a` and `b`.

    Where the row has none, `id` is a hash of the three, `prompt_id` one of the prompt, and `kind` "red-team". Further
    columns are kept. Raises InputError that lists, with file and line, every row that is no pair or has an old id.
    """
    rows: list[PairRow] = []
    problems: list[InputError] = []
    lines: dict[str, int] = {}
    for line, raw in read_numbered_rows(path):
        try:
            row = _pair_row(raw)
            if first := lines.get(row["id"]):
                what = (
                    f"id {row['id']!r} stands on line {first} too" if "id" in raw else f"the pair of line {first} again"
                )
                raise InputError(what, remedy="make the ids unique" if "id" in raw else "give each pair once, or an id")
        except InputError as error:
            problems.append(InputError(error.what, path=path, line=line, remedy=error.remedy))
        else:
            lines[row["id"]] = line
            rows.append(row)
    if problems:
        raise InputError.all_of(problems, shown=ROWS_SHOWN)
    if not rows:
        raise InputError("no pair in the file", path=path, remedy="one JSON object a line with prompt, a and b")
    return rows


_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


def _pair_row(raw: Mapping[str, Any]) -> PairRow:
    empty = [name for name in ("a", "b") if not isinstance(raw.get(name), str) or not raw[name].strip()]
    if empty:
        raise InputError(f"no text in {' and '.join(map(repr, empty))}", remedy="a pair holds two answers, 'a' and 'b'")
    given = raw.get("prompt")
    try:
        prompt = tidy(dialogue_of(given) if isinstance(given, str) else _MESSAGES.validate_python(given))
    except ValidationError as error:
        raise InputError("'prompt' is no dialogue", remedy='a list of {"role": ..., "content": ...}') from error
    if not prompt or prompt[-1]["role"] != "user" or not all(turn["content"] for turn in prompt):
        raise InputError(
            "'prompt' has an empty turn or does not end with a human turn", remedy="the answers are a and b"
        )
    identity = raw.get("id", content_id([prompt, raw["a"], raw["b"]]))
    if not isinstance(identity, str):
        raise InputError(f"id is {identity!r}, not a text", remedy="leave the ids out, or write them in quotes")
    defaults: dict[str, object] = {"prompt_id": content_id(prompt), "kind": "red-team", "truncated": []}
    row = {**defaults, **{name: value for name, value in raw.items() if value is not None or name not in defaults}}
    for name, default in defaults.items():
        if not isinstance(row[name], type(default)):
            raise InputError(f"{name} is {row[name]!r}", remedy="leave it out, or give what `solon pairs` writes")
    return cast(PairRow, {**row, "id": identity, "prompt": prompt})


# ---- the loops


async def sample_pairs(
    recipe: Recipe,
    stage: StageFolder,
    *,
    engine: Engine,
    prompts: Sequence[PromptRow],
    progress: Progress = silent,
) -> None:
    """Write pairs.jsonl: `pairs.per_prompt` pairs of answers to each prompt, sampled from SL-CAI (section 4.1).

    Two answers that are the same are a failure with the reason "identical". The stage, begun by the caller, is not
    finished: `compare` goes on in it.
    """
    settings = recipe.pairs
    assert settings is not None
    wanted = [_pair_request(prompt, number) for prompt in prompts for number in range(1, settings.per_prompt + 1)]

    async def make(pair: PairRequest) -> PairRow:
        chain = Chain(engine=engine, id=pair["id"], seed=recipe.seed, sampling=settings.sampling)
        a = await chain.say(pair["prompt"], where="a")
        b = await chain.say(pair["prompt"], where="b")
        if a == b:
            raise Unusable(where="pair", reason="identical", text=a)
        return {**pair, "a": a, "b": b, "truncated": chain.truncated}

    loop = RowLoop(
        stage=stage,
        file="pairs.jsonl",
        window=settings.window,
        failure_limit=settings.failure_limit,
        progress=progress,
        what="pairs of answers",
    )
    await loop.run(wanted, make)


def _pair_request(prompt: PromptRow, number: int) -> PairRequest:
    about = {name: value for name, value in prompt.items() if name not in ("id", "source")}
    return cast(PairRequest, {"id": f"{prompt['id']}/{number}", "prompt_id": prompt["id"], **about})


async def compare(  # noqa: PLR0913 - a stage's arguments, and what its judge is tried on
    recipe: Recipe,
    stage: StageFolder,
    *,
    constitution: Constitution,
    engine: Engine,
    pairs: Sequence[PairRow],
    planted: Sequence[Planted] | None = None,
    progress: Progress = silent,
) -> None:
    """Write comparisons.jsonl: the judge's label of every pair, and finish the stage, which the caller has begun.

    First the judge must pass the gate (`pass_gate`) on the pairs of `comparisons.gate.pairs`, else on `planted`, else,
    where that is None, on those that ship. The principles of a pair and the few-shot exemplars, each with its own
    principle and order, are drawn from the run's seed and the pair's id. Raises InputError if the judge fails the gate
    or the constitution lacks principles or exemplars for comparisons, and TooManyFailures if more than
    `comparisons.failure_limit` of the pairs cannot be scored.
    """
    settings = recipe.comparisons
    assert settings is not None
    gate = await pass_gate(recipe, stage, constitution=constitution, engine=engine, planted=planted, progress=progress)

    async def make(pair: PairRow) -> FeedbackRow:
        chain = Chain(engine=engine, id=pair["id"], seed=recipe.seed, sampling=Sampling())
        texts = Pair(prompt=pair["prompt"], a=pair["a"], b=pair["b"])
        if texts.a == texts.b:
            raise Unusable(where="pair", reason="identical", text=texts.a)
        judgement = await judge_under_drawn(texts, chain=chain, settings=settings, constitution=constitution)
        return feedback_row(pair, judgement, judge=engine.capabilities.model, chain=chain)

    loop = RowLoop(
        stage=stage,
        file="comparisons.jsonl",
        window=settings.window,
        failure_limit=settings.failure_limit,
        progress=progress,
        what="comparisons",
    )
    await loop.run(pairs, make)
    stage.finish(
        counts=_counts(read_rows(stage.path / "comparisons.jsonl"), num_pairs=len(pairs)),
        constitution=constitution_facts(constitution),
        engine=asdict(engine.capabilities),
        way=judge_way(engine),
        gate=gate,
    )


async def judge_under_drawn(
    pair: Pair, *, chain: Chain, settings: Comparisons, constitution: Constitution
) -> Judgement:
    """`judge_pair` under principles, and after few-shot exemplars, that are drawn from the chain's seed and id."""
    return await judge_pair(
        pair,
        chain=chain,
        settings=settings,
        principles=draw_principles(constitution, k=settings.principles, seed=chain.seed, id=chain.id),
        exemplars=draw_exemplars(
            constitution,
            k=settings.few_shot,
            reasoning=settings.reasoning,
            seed=derive_seed(chain.seed, chain.id, "exemplars"),
        ),
    )


def draw_principles(constitution: Constitution, *, k: int, seed: int, id: str) -> tuple[Principle, ...]:
    """The `k` different principles of one comparison: they depend on the run's seed and the pair's id alone."""
    return constitution.sample("comparison", k, derive_seed(seed, id, "principles"))


def _counts(rows: Iterable[Mapping[str, Any]], *, num_pairs: int) -> dict[str, int]:
    counts = {"pairs": num_pairs, "comparisons": 0, "a_chosen": 0, "verdicts_read": 0, "verdicts_unread": 0}
    for row in rows:
        verdicts = Counter(row["verdicts"] or {})
        counts["comparisons"] += 1
        counts["a_chosen"] += row["a_is_chosen"]
        counts["verdicts_read"] += verdicts["read"]
        counts["verdicts_unread"] += verdicts.total() - verdicts["read"]
    return counts
