"""SL-CAI: respond, criticise, revise; then fine-tune on the revisions (paper, sections 1.2 and 3).

    stage.begin(config=..., inputs=...)
    await revise(recipe, stage, constitution=constitution, engine=engine, prompts=red_team_prompts)
    # 01-revisions/revisions.jsonl: {"id", "prompt", "response", "rounds": [{"principle", "critique", "revision"}], ...}

The assistant answers a red-team prompt; then, round after round, a principle is drawn, the assistant criticises its
last answer under it and rewrites it, and the revision takes the answer's place, so that earlier critiques leave the
context.

Differences from the paper: 1. texts that were cut at the token limit are not trained on. 2. The few-shot exemplars are
drawn from the constitution's, once per run, so that every prompt of the run begins alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from solon.artifact import Progress, StageFolder, derive_seed, read_rows, silent, write_rows
from solon.chain import Chain, RowLoop, constitution_facts
from solon.config import Recipe, Revisions
from solon.constitution import Constitution, RevisionExemplar
from solon.dialogue import Message, PromptRow, Role, SFTRow, reply, sft_row
from solon.engine import Engine, FolderEngineConfig, without_ray
from solon.errors import InputError

# ---- rows


@with_config(ConfigDict(extra="forbid"))
class Round(TypedDict):
    """One critique and revision."""

    principle: str
    """Its id."""
    critique: str | None
    """None in the critique-free variant."""
    revision: str


class RevisionRow(PromptRow):
    """A row of revisions.jsonl: a whole chain, beside the columns of its prompt."""

    response: str
    """The assistant's first answer."""
    rounds: list[Round]
    truncated: list[str]
    """Steps whose text reached the token limit: "response", "critique-2", "revision-2"."""
    tokens: dict[str, int]
    """Tokens read ("prompt") and written ("completion") over the chain."""
    seed: int
    """Of the run; the seed of each step derives from it, the id and the step's name."""


class HelpfulRequest(TypedDict):
    """One answer that is wanted to a helpfulness prompt."""

    id: str
    """The prompt's id, a slash, and the number of the answer from 1."""
    prompt_id: str
    prompt: list[Message]


class HelpfulRow(HelpfulRequest):
    """A row of helpful.jsonl: one answer of the assistant to a helpfulness prompt."""

    response: str
    truncated: bool
    """Whether the answer was cut at the token limit."""


class SFTSet(NamedTuple):
    """What SL-CAI is trained on."""

    rows: list[SFTRow]
    num_truncated: int
    """Texts left out because they were cut at the token limit."""


# ---- prompts


def critique_prompt(
    conversation: Sequence[Message],
    response: str,
    critique_request: str,
    exemplars: Sequence[RevisionExemplar] = (),
) -> list[Message]:
    """The dialogue whose next turn is a critique of `response`, after whole worked examples."""
    worked = [turn for exemplar in exemplars for turn in _worked(exemplar)]
    return [*worked, *conversation, reply(response.strip()), _turn("user", critique_request, "CritiqueRequest")]


def revision_prompt(critique_messages: Sequence[Message], critique: str, revision_request: str) -> list[Message]:
    """The critique's dialogue continued with the critique; its next turn is the revision."""
    return [
        *critique_messages,
        _turn("assistant", critique, "Critique"),
        _turn("user", revision_request, "RevisionRequest"),
    ]


def direct_revision_prompt(
    conversation: Sequence[Message],
    response: str,
    revision_request: str,
    exemplars: Sequence[RevisionExemplar] = (),
) -> list[Message]:
    """The critique-free variant (section 3.5): the dialogue whose next turn is the revision."""
    worked = [turn for exemplar in exemplars for turn in _worked(exemplar, critique=False)]
    return [*worked, *conversation, reply(response.strip()), _turn("user", revision_request, "RevisionRequest")]


def _worked(exemplar: RevisionExemplar, *, critique: bool = True) -> list[Message]:
    criticised: list[Message] = [
        _turn("user", exemplar.critique_request, "CritiqueRequest"),
        _turn("assistant", exemplar.critique, "Critique"),
    ]
    return [
        *exemplar.conversation,
        *(criticised if critique else ()),
        _turn("user", exemplar.revision_request, "RevisionRequest"),
        _turn("assistant", exemplar.revision, "Revision"),
    ]


def _turn(role: Role, content: str, label: str) -> Message:
    return {"role": role, "content": content.strip(), "label": label}


# ---- the chain


async def revise_chain(
    prompt: PromptRow,
    *,
    chain: Chain,
    constitution: Constitution,
    settings: Revisions,
    exemplars: Sequence[RevisionExemplar] = (),
) -> RevisionRow:
    """Respond, then criticise and revise in every round under a principle drawn afresh, with replacement (section 3.1).

    Raises Unusable, with the step at which the chain could not go on.
    """
    conversation = prompt["prompt"]
    response = current = await chain.say(conversation, where="response")
    rounds: list[Round] = []
    for number in range(1, settings.rounds + 1):
        principle = constitution.draw("revision", derive_seed(chain.seed, prompt["id"], "principle", number))
        assert principle.critique is not None and principle.revision is not None
        critique = None
        if settings.critique:
            messages = critique_prompt(conversation, current, principle.critique, exemplars)
            critique = await chain.say(messages, where=f"critique-{number}")
            messages = revision_prompt(messages, critique, principle.revision)
        else:
            messages = direct_revision_prompt(conversation, current, principle.revision, exemplars)
        current = await chain.say(messages, where=f"revision-{number}")
        rounds.append({"principle": principle.id, "critique": critique, "revision": current})
    return {
        **prompt,
        "response": response,
        "rounds": rounds,
        "truncated": chain.truncated,
        "tokens": chain.tokens,
        "seed": chain.seed,
    }


# ---- training rows


def build_sft_rows(revisions: Iterable[RevisionRow], helpful: Iterable[HelpfulRow], *, seed: int) -> SFTSet:
    """The revisions of all rounds (section 3.1) and the helpful answers, as rows for TRL, shuffled.

    `origin` is "revision-1", "revision-2", ... or "helpful". Revisions of one chain that are alike are all kept, as in
    the paper. The order of the inputs does not matter.
    """
    rows: list[SFTRow] = []
    num_truncated = 0
    for chain in sorted(revisions, key=lambda row: row["id"]):
        for number, round_ in enumerate(chain["rounds"], start=1):
            if f"revision-{number}" in chain["truncated"]:
                num_truncated += 1
            else:
                rows.append(sft_row(chain["prompt"], round_["revision"], origin=f"revision-{number}"))
    for answer in sorted(helpful, key=lambda row: row["id"]):
        if answer["truncated"]:
            num_truncated += 1
        else:
            rows.append(sft_row(answer["prompt"], answer["response"], origin="helpful"))
    Random(derive_seed(seed, "sft-order")).shuffle(rows)
    return SFTSet(rows, num_truncated)


# ---- the loops


async def revise(
    recipe: Recipe,
    stage: StageFolder,
    *,
    constitution: Constitution,
    engine: Engine,
    prompts: Sequence[PromptRow],
    progress: Progress = silent,
) -> None:
    """Write revisions.jsonl, a whole chain a row, and finish the stage, which the caller has begun.

    Raises InputError if the constitution lacks principles or exemplars for revisions, TooManyFailures if more than
    `revisions.failure_limit` of the prompts fail.
    """
    settings = recipe.revisions
    assert settings is not None
    constitution.serving("revision")
    few_shot_seed = derive_seed(recipe.seed, "revision-exemplars")
    exemplars = constitution.exemplars.draw("revision", settings.few_shot, seed=few_shot_seed)

    async def make(prompt: PromptRow) -> RevisionRow:
        chain = Chain(engine=engine, id=prompt["id"], seed=recipe.seed, sampling=settings.sampling)
        return await revise_chain(
            prompt,
            chain=chain,
            constitution=constitution,
            settings=settings,
            exemplars=cast(Sequence[RevisionExemplar], exemplars),
        )

    counts = _RevisionCounts()
    loop = RowLoop(
        stage=stage,
        file="revisions.jsonl",
        window=settings.window,
        failure_limit=settings.failure_limit,
        progress=progress,
        what="respond, criticise, revise",
        seen=counts.add,
    )
    await loop.run(prompts, make)
    stage.finish(
        counts={"prompts": len(prompts), **asdict(counts)},
        constitution=constitution_facts(constitution),
        engine=asdict(engine.capabilities),
    )


@dataclass(slots=True)
class _RevisionCounts:
    """What the manifest counts of revisions.jsonl."""

    chains: int = 0
    revisions: int = 0
    truncated_texts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self.chains += 1
        self.revisions += len(row["rounds"])
        self.truncated_texts += len(row["truncated"])
        self.prompt_tokens += row["tokens"]["prompt"]
        self.completion_tokens += row["tokens"]["completion"]


async def sample_helpful(
    recipe: Recipe,
    stage: StageFolder,
    *,
    engine: Engine,
    prompts: Sequence[PromptRow],
    progress: Progress = silent,
) -> None:
    """Write helpful.jsonl: `supervised.helpful_samples` answers of the assistant to each helpfulness prompt.

    The paper takes 2 (section 3.2). The stage, begun by the caller, is not finished: `sft` goes on in it.
    """
    settings, sampled = recipe.supervised, recipe.revisions
    assert settings is not None and sampled is not None
    wanted: list[HelpfulRequest] = [
        {"id": f"{prompt['id']}/{number}", "prompt_id": prompt["id"], "prompt": prompt["prompt"]}
        for prompt in prompts
        for number in range(1, settings.helpful_samples + 1)
    ]

    async def make(row: HelpfulRequest) -> HelpfulRow:
        chain = Chain(engine=engine, id=row["id"], seed=recipe.seed, sampling=sampled.sampling)
        response = await chain.say(row["prompt"], where="helpful")
        return {**row, "response": response, "truncated": bool(chain.truncated)}

    loop = RowLoop(
        stage=stage,
        file="helpful.jsonl",
        window=sampled.window,
        failure_limit=sampled.failure_limit,
        progress=progress,
        what="helpful answers",
    )
    await loop.run(wanted, make)


def sft(
    recipe: Recipe,
    stage: StageFolder,
    *,
    constitution: Constitution,
    revisions: Path,
    progress: Progress = silent,
) -> Path:
    """Fine-tune on the rows of `revisions` and the stage's helpful.jsonl, finish the stage, return the model's folder.

    Starts from the pretrained model as the paper does, or from the assistant (`supervised.start`). Raises InputError if
    there is nothing to train on.
    """
    from solon.training import RunContext, train_sft

    settings = recipe.supervised
    assert settings is not None
    helpful = stage.path / "helpful.jsonl"
    chosen = build_sft_rows(
        cast("Iterable[RevisionRow]", read_rows(revisions)),
        cast("Iterable[HelpfulRow]", read_rows(helpful) if helpful.exists() else ()),
        seed=recipe.seed,
    )
    if not chosen.rows:
        remedy = f"raise revisions.sampling.max_new_tokens ({chosen.num_truncated} texts were cut)"
        raise InputError("no revision to train on", path=revisions, remedy=remedy if chosen.num_truncated else None)
    write_rows(stage.path / "sft.jsonl", chosen.rows)
    trained = train_sft(
        chosen.rows,
        model=start_model(recipe),
        stage=stage,
        config=settings,
        run=RunContext(
            seed=recipe.seed,
            facts={"constitution": constitution.name, "constitution fingerprint": constitution.fingerprint},
            progress=progress,
            launch=recipe.launch,
        ),
    )
    origins = Counter(row["origin"] for row in chosen.rows)
    stage.finish(
        counts={**trained.counts, **origins, "truncated_left_out": chosen.num_truncated},
        constitution=constitution_facts(constitution),
    )
    return trained.model


def start_model(recipe: Recipe) -> str:
    """The model that is fine-tuned: the pretrained one, or the assistant. A recipe is valid only where it is there."""
    settings, assistant = recipe.supervised, without_ray(recipe.model)
    assert settings is not None
    if settings.start == "pretrained":
        assert settings.pretrained is not None
        return settings.pretrained
    assert isinstance(assistant, FolderEngineConfig)
    return assistant.path
