"""Sampling the answers that are evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from solon.artifact import Journal, Progress, StageFolder, content_id, derive_seed, run_chains, silent
from solon.config import Evaluation
from solon.engine import Engine, Request, Sampling
from solon.errors import EngineError
from solon.evaluation.rows import FAILURE_LIMIT, WINDOW, OpenEngine, ResponseRow, in_order


async def respond(
    stage: StageFolder,
    *,
    models: Mapping[str, OpenEngine],
    prompts: Sequence[Mapping[str, Any]],
    settings: Evaluation,
    seed: int,
    progress: Progress = silent,
) -> list[ResponseRow]:
    """Sample every model's answers to every prompt into responses.jsonl; what is there already is not sampled again.

    A prompt is a row of prompts.jsonl; its `kind` may also be "look-alike": benign, but it looks harmful. An answer
    that an engine could not give is a counted failure. Returns all rows, by model and prompt.
    """
    plan = [_response_plan(name, prompt=row) for name in models for row in prompts]
    with stage.journal("responses.jsonl") as journal:
        todo = [row for row in plan if row["id"] not in journal]
        progress.start("evaluation: answers", len(plan), len(plan) - len(todo))
        try:
            for name, rows in itertools.groupby(todo, key=lambda row: row["model"]):
                engine = await models[name]()
                try:
                    work = _Respond(
                        engine=engine,
                        stage=stage,
                        journal=journal,
                        sampling=settings.sampling,
                        seed=seed,
                        progress=progress,
                    )
                    await run_chains(rows, work, window=WINDOW)
                finally:
                    await engine.aclose()
        finally:
            progress.end()
        stage.check_failures(attempted=len(plan), limit=FAILURE_LIMIT)
        return [cast(ResponseRow, row) for row in in_order(journal, plan)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Respond:
    engine: Engine
    stage: StageFolder
    journal: Journal
    sampling: Sampling
    seed: int
    progress: Progress

    async def __call__(self, row: ResponseRow) -> None:
        seed = derive_seed(self.seed, "evaluation", row["id"])
        request = Request(
            prompt=tuple(row["prompt"]), sampling=self.sampling, seed=seed, session=f"evaluation-{row['id']}"
        )
        try:
            completion = await self.engine.generate(request)
        except EngineError as error:
            self.stage.fail(id=row["id"], where="respond", reason=error.reason, text=str(error))
        else:
            self.journal.append({**row, "response": completion.text, "finish_reason": completion.finish_reason})
        self.progress.advance()


def _response_plan(model: str, *, prompt: Mapping[str, Any]) -> ResponseRow:
    return {
        "id": content_id([model, prompt["id"]]),
        "model": model,
        "prompt_id": prompt["id"],
        "kind": prompt["kind"],
        "activity": prompt.get("activity"),
        "category": prompt.get("category"),
        "prompt": prompt["prompt"],
        "response": "",
        "finish_reason": "",
    }
