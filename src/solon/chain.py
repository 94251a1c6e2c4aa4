"""One chain of requests for each row: asked in turn, saved when the row is done, a counted failure when it cannot be.

async def make(prompt):
    chain = Chain(engine=engine, id=prompt["id"], seed=0, sampling=Sampling())
    return {"id": prompt["id"], "response": await chain.say(prompt["prompt"], where="response")}

await fill_journal(prompts, make, stage=stage, file="responses.jsonl", window=64, failure_limit=0.5)
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from solon.artifact import Progress, StageFolder, derive_seed, ids_of, run_chains, silent
from solon.constitution import Constitution
from solon.dialogue import Message
from solon.engine import Engine, Request, Sampling
from solon.errors import EngineError

_Item = TypeVar("_Item", bound=Mapping[str, Any])


class Unusable(Exception):
    """A chain cannot go on: its row becomes a failure. Never leaves this package."""

    def __init__(self, *, where: str, reason: str, text: str = "") -> None:
        self.where, self.reason, self.text = where, reason, text
        super().__init__(f"{where}: {reason}")


@dataclass(slots=True, kw_only=True)
class Chain:
    """The requests that make one row, with what they cost and what was cut."""

    engine: Engine
    id: str
    """The row's; seeds derive from it."""
    seed: int
    """Of the run."""
    sampling: Sampling
    truncated: list[str] = field(default_factory=list[str])
    """The steps whose text reached the token limit."""
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0

    async def say(
        self, prompt: Sequence[Message], *, where: str, prefix: str = "", sampling: Sampling | None = None
    ) -> str:
        """The text that the model says next, without white space around it.

        Its seed derives from the run's seed, the row's id and `where`, the name of the step. Raises Unusable for a
        request that the engine cannot answer and for an empty text.
        """
        request = Request(
            prompt=tuple(prompt),
            prefix=prefix,
            sampling=sampling or self.sampling,
            seed=derive_seed(self.seed, self.id, where),
            session=self.id,
        )
        try:
            completion = await self.engine.generate(request)
        except EngineError as error:
            raise Unusable(where=where, reason=error.reason, text=str(error)) from error
        self.num_prompt_tokens += completion.prompt_tokens
        self.num_completion_tokens += completion.completion_tokens
        text = completion.text.strip()
        if not text:
            raise Unusable(where=where, reason="empty", text=completion.text)
        if completion.finish_reason == "length":
            self.truncated.append(where)
        return text

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens read and written so far."""
        return {"prompt": self.num_prompt_tokens, "completion": self.num_completion_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoop:
    """A file of rows that is filled, an item at a time."""

    stage: StageFolder
    file: str
    what: str
    """What progress is shown for."""
    window: int
    """Chains that are under way at most."""
    failure_limit: float
    """Share of failed rows, in [0, 1], above which the loop stops."""
    progress: Progress = silent
    seen: Callable[[Mapping[str, Any]], None] | None = None
    """Called with every row of the file once: those that were there before, then each that is made."""

    async def run(self, items: Sequence[_Item], make: Callable[[_Item], Awaitable[Mapping[str, Any]]]) -> None:
        """Append the row that `make` gives for each item as soon as it is done; pass over items whose row is there.

        A row has its item's id. An item that is Unusable is recorded in failures.jsonl. Raises TooManyFailures as soon
        as it is certain that more than `failure_limit` of the stage's rows will have failed.
        """
        stage = self.stage
        num_failed = len(stage.failed)
        others = len(stage.failed - {item["id"] for item in items}) if num_failed else 0
        attempted = len(items) + others
        with stage.journal(self.file, seen=self.seen) as journal:
            places: Sequence[int] = range(len(items))
            if len(journal):
                places = array("Q", (place for place, identity in enumerate(ids_of(items)) if identity not in journal))
            # Items are pulled as chains end, because all of them may not fit into memory.
            todo = (items[place] for place in places)

            async def work(item: _Item) -> None:
                nonlocal num_failed
                try:
                    journal.append(await make(item))
                except Unusable as problem:
                    stage.fail(id=item["id"], where=problem.where, reason=problem.reason, text=problem.text)
                    num_failed += 1
                    if num_failed > self.failure_limit * attempted:
                        stage.check_failures(attempted=attempted, limit=self.failure_limit)
                self.progress.advance()

            self.progress.start(self.what, len(items), len(items) - len(places))
            try:
                await run_chains(todo, work, window=self.window)
            finally:
                self.progress.end()


def constitution_facts(constitution: Constitution) -> dict[str, str]:
    """What a manifest says of the constitution."""
    return {"name": constitution.name, "fingerprint": constitution.fingerprint}
