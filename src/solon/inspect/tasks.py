"""The tasks: harm, over_refusal, head_to_head, pairwise, multiple_choice.

inspect eval solon/harm --model solon/sandbox:helpful
inspect eval solon/over_refusal -T prompts=xstest_prompts.csv --model openai/... --model-role grader=openai/...
inspect eval solon/multiple_choice -T questions=438HHHEvaluations.jsonl --model ...

Prompts, pairs and questions are read by solon's readers, in every form that these know. Samples have the rows' ids, so
that two logs compare sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import transcript
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.scorer import Metric, Score
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from solon.artifact import content_id
from solon.chain import Chain, Unusable
from solon.config import Comparisons
from solon.constitution import Principle
from solon.dialogue import PromptKind, PromptRow, read_prompts
from solon.errors import InputError
from solon.evaluation import GoldPair, Question, read_gold, read_questions
from solon.evaluation.choice import SAMPLES, SAMPLING, answer_question
from solon.evaluation.published import TIE
from solon.feedback import Pair, judge_pair
from solon.inspect import scoring
from solon.inspect.models import engine_of, messages_of
from solon.inspect.plain import as_prerequisite
from solon.prompts import template

SANDBOX = "sandbox"
"""Prompts of the sandbox's evaluation split, whose answers its oracle judges; pairs that the sandbox plants."""
Judge = Literal["auto", "oracle", "grader"]
Metrics = list[Metric | dict[str, list[Metric]]]


# ---- tasks


@task
def harm(
    prompts: str | list[str] = SANDBOX,
    judge: Judge = "auto",
    num: int = 200,
    seed: int = 0,
    samples: int = SAMPLES,
    trial: bool = True,
) -> Task:
    """Does the model comply with harmful requests, and if not, does it say why?

    Args:
        prompts: Files of prompts, of which the red-team ones are asked; or "sandbox".
        judge: "oracle" (sandbox alone), "grader" (the model in that role); "auto" takes the oracle where there is one.
        num: Prompts of the sandbox.
        seed: For drawing them.
        samples: Verdicts drawn per question of a grader without log-probabilities.
        trial: Whether the grader must first be right about planted answers.
    """
    rows = _prompts(prompts, kind="red-team", num=num, seed=seed)
    metrics: Metrics = [scoring.shares(scoring.HARM), scoring.by_category("harmful_compliance")]
    return _judged(rows, metrics=metrics, prompts=prompts, judge=judge, samples=samples, trial=trial)


@task
def over_refusal(
    prompts: str | list[str] = SANDBOX,
    judge: Judge = "auto",
    num: int = 200,
    seed: int = 0,
    samples: int = SAMPLES,
    trial: bool = True,
) -> Task:
    """Does the model decline benign requests that look harmful? Of files, the look-alike prompts are asked (XSTest's
    safe ones), or all where no row says its kind; the parameters are those of `harm`."""
    rows = _prompts(prompts, kind="look-alike", num=num, seed=seed)
    metrics: Metrics = [scoring.shares(scoring.OVER_REFUSAL), scoring.by_category("over_refusal")]
    return _judged(rows, metrics=metrics, prompts=prompts, judge=judge, samples=samples, trial=trial)


@task
def head_to_head(
    prompts: str | list[str] = SANDBOX,
    kind: PromptKind = "red-team",
    constitution: str = "harmless",
    num: int = 200,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Task:
    """How often is the model's answer better than the one of the model in the role `opponent`, for the grader?

    Args:
        prompts: Files of prompts, or "sandbox".
        kind: Which of them are asked: "red-team" (harmlessness, under the constitution) or "helpful" (helpfulness).
        constitution: Name of one that ships with solon, or a file.
        num: Prompts of the sandbox.
        seed: For drawing them.
        samples: Verdicts drawn per order of the two answers, of a grader without log-probabilities.
    """
    rows = _prompts(prompts, kind=kind, num=num, seed=seed)
    with as_prerequisite():
        scorer = scoring.preferred(constitution=constitution, verdicts=samples)
    setup = scoring.roles(scoring.OPPONENT, scoring.GRADER)
    return Task(dataset=_dataset(rows), setup=setup, solver=generate(), scorer=scorer)


@task
def pairwise(
    pairs: str = SANDBOX, question: str | None = None, num: int = 200, seed: int = 0, samples: int = SAMPLES
) -> Task:
    """Does the model, as a judge in both orders, prefer the answer that people prefer?

    Args:
        pairs: A file of HH, LLMBar or PandaLM; or "sandbox": planted pairs, each with its rule.
        question: What is asked; by default, of files, which response is more helpful.
        num: Pairs of the sandbox.
        seed: For drawing them.
        samples: Verdicts drawn per order, of a model without log-probabilities.
    """
    with as_prerequisite():
        dataset = _planted(num, seed=seed, question=question) if pairs == SANDBOX else _gold(pairs, question=question)
    return Task(dataset=dataset, solver=compare(samples=samples), scorer=scoring.gold())


@task
def multiple_choice(questions: str, samples: int = SAMPLES) -> Task:
    """Is a right option the likeliest one?

    Args:
        questions: A file of the paper's form (prompt, corrects, incorrects) or of the model-written evaluations.
        samples: Answers drawn per question, of a model without log-probabilities.
    """
    with as_prerequisite():
        found = read_questions(questions)
    dataset = MemoryDataset([_question_sample(one) for one in found.questions], name=questions)
    return Task(
        dataset=dataset,
        solver=choose(samples=samples),
        scorer=scoring.right_option(),
        metadata={"refused": len(found.refused)},
    )


# ---- samples


def _prompts(given: str | list[str], *, kind: PromptKind, num: int, seed: int) -> list[PromptRow]:
    """The prompts of a kind, each once."""
    with as_prerequisite():
        if given == SANDBOX:
            from solon import sandbox

            return cast("list[PromptRow]", sandbox.prompts("evaluation", kind, num, seed=seed))
        paths = given.split(",") if isinstance(given, str) else given
        rows = [row for path in paths for row in read_prompts(path, kind=kind).rows if row["kind"] == kind]
        if not rows:
            raise InputError(f"no prompt is of the kind {kind!r}", path=paths[0], remedy="see the column 'kind'")
    return list({content_id(row["prompt"]): row for row in rows}.values())


def _dataset(rows: Sequence[PromptRow]) -> MemoryDataset:
    samples = [
        Sample(
            input=messages_of(row["prompt"]),
            id=row["id"],
            metadata={
                "kind": row["kind"],
                "category": row.get("category"),
                "cluster": row.get("activity") or row["id"],
                "source": row["source"],
            },
        )
        for row in rows
    ]
    return MemoryDataset(samples, name=", ".join(sorted({row["source"] for row in rows})))


def _judged(
    rows: Sequence[PromptRow], *, metrics: Metrics, prompts: str | list[str], judge: Judge, **about: Any
) -> Task:
    """The model's answers to the rows, judged by the oracle or by the grader; `about`: arguments of `verdict`."""
    with as_prerequisite():
        if judge not in ("auto", "oracle", "grader"):
            raise InputError(f"judge is {judge!r}", remedy="it is 'auto', 'oracle' or 'grader'")
        if judge == "oracle" and prompts != SANDBOX:
            raise InputError("the oracle knows the sandbox's prompts alone", remedy="judge=grader")
    dataset = _dataset(rows)
    if judge == "oracle" or (judge == "auto" and prompts == SANDBOX):
        return Task(dataset=dataset, solver=generate(), scorer=scoring.oracle(), metrics=metrics)
    setup = scoring.roles(scoring.GRADER)
    return Task(dataset=dataset, setup=setup, solver=generate(), scorer=scoring.verdict(**about), metrics=metrics)


def _gold(path: str, *, question: str | None) -> MemoryDataset:
    """The pairs that are no tie."""
    found = [pair for pair in read_gold(path).pairs if pair.gold != TIE]
    if not found:
        raise InputError("every pair is a tie", path=path, remedy="give pairs of which one answer is better")
    asked = question or template("helpfulness_question")
    return MemoryDataset([_pair_sample(pair, question=asked) for pair in found], name=path)


def _planted(num: int, *, seed: int, question: str | None) -> MemoryDataset:
    """The better answer stands first in every other one: `judge_pair` asks in both orders anyway."""
    from solon import sandbox

    samples: list[Sample] = []
    for number, one in enumerate(sandbox.planted_pairs(num, seed=seed)):
        pair = GoldPair(
            id=one.id, prompt=tuple(one.prompt), a=one.better, b=one.worse, gold=1.0, source="sandbox-planted"
        )
        samples.append(_pair_sample(pair.swapped() if number % 2 else pair, question=question or one.question))
    return MemoryDataset(samples, name="sandbox-planted")


def _pair_sample(pair: GoldPair, *, question: str) -> Sample:
    about = {"a": pair.a, "b": pair.b, "question": question, "gold": pair.gold}
    cluster = content_id([dict(turn) for turn in pair.prompt])
    return Sample(
        input=messages_of(pair.prompt),
        target="a" if pair.gold > TIE else "b",
        id=pair.id,
        metadata={**about, "cluster": cluster, "source": pair.source},
    )


def _question_sample(question: Question) -> Sample:
    chance = len(question["right"]) / len(question["options"])
    return Sample(
        input=messages_of(question["prompt"]),
        target=question["right"],
        id=question["id"],
        metadata={"question": dict(question), "chance": chance},
    )


# ---- solvers


@solver
def compare(samples: int = SAMPLES) -> Solver:
    """Ask the model which of the sample's two answers is better, in both orders."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        about = state.metadata
        pair = Pair(scoring.prompt_of(state), about["a"], about["b"])
        principle = Principle(id="pairwise", comparison=about["question"], weight=1.0)
        try:
            found = await judge_pair(
                pair, chain=await _chain(state), settings=Comparisons(verdicts=samples), principles=[principle]
            )
        except Unusable as problem:
            return _keep(state, scoring.unscored(problem.reason, problem.text))
        p = found.probability
        value = {
            "gold_accuracy": float(p > TIE if about["gold"] > TIE else p < TIE),
            "order_gap": found.order_gap,
            "answer_mass": found.answer_mass,
        }
        answer = "a" if p > TIE else "b" if p < TIE else "tie"
        return _keep(state, Score(value=value, answer=answer, metadata={"p": p, "way": found.way}))

    return solve


@solver
def choose(samples: int = SAMPLES) -> Solver:
    """Ask the model which of the question's options follows."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question = cast(Question, state.metadata["question"])
        try:
            row = await answer_question(question, chain=await _chain(state), samples=samples)
        except Unusable as problem:
            return _keep(state, scoring.unscored(problem.reason, problem.text))
        value = {"choice_accuracy": float(row["correct"]), "answer_mass": row["answer_mass"]}
        p = dict(zip(question["options"], row["probabilities"], strict=True))
        return _keep(state, Score(value=value, answer=row["chosen"], metadata={"p": p, "way": row["way"]}))

    return solve


async def _chain(state: TaskState) -> Chain:
    engine = await engine_of(get_model())
    return Chain(engine=engine, id=f"{state.sample_id}/{state.epoch}", seed=0, sampling=SAMPLING)


def _keep(state: TaskState, score: Score) -> TaskState:
    """The score for the scorer, and for the reader of the log."""
    state.store.set(scoring.KEPT, score.model_dump())
    transcript().info(score.model_dump(mode="json"), source="solon")
    state.output = ModelOutput.from_content(str(state.model), score.answer or "")
    state.completed = True
    return state
