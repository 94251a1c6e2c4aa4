"""One reinforcement step of a model of about 1B parameters on a GPU: tokens per second, peak memory, shares of time.

    python benchmarks/rl_gpu.py                  # the reinforcement section of recipes/paper-2022.yaml
    python benchmarks/rl_gpu.py --set reinforcement.trainer.use_vllm=true --set reinforcement.lora.r=16
    python benchmarks/rl_gpu.py --tiny           # the same script in seconds on a CPU; its figures mean nothing

The policy and the preference model are Llamas of random weights in the shape of Llama 3.2 1B: nothing is downloaded,
and answers are nearly always as long as they may be. A first step warms up; the second is measured, beside what
`solon run --plan` would have said of its memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rl_timing import Stopwatch, measured, shares
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from solon import sandbox
from solon.artifact import StageFolder, read_rows
from solon.config import Recipe, load_recipe, shipped_recipe
from solon.plan.memory import recipe_memory
from solon.reinforcement import ROLLOUTS_FILE, train_rl
from solon.training import RunContext, load_tokenizer
from solon.training.models import encode_prompt

LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {**LLAMA_1B, "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
STEPS = 2
GIB = 2**30


class Second:
    """A progress that measures from the end of the first step to that of the second, before anything is saved."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self._num_steps = watch, 0
        self.seconds = Counter[str]()

    def start(self, what: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        self._num_steps += 1
        with self._watch.part("other"):
            self.seconds = Counter(self._watch.seconds)
        if self._num_steps == 1:
            self._watch.seconds.clear()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

    def end(self) -> None:
        pass


def random_models(folder: Path, *, shape: dict[str, int]) -> tuple[Path, Path]:
    """A policy and a preference model."""
    tokenizer = load_tokenizer("sandbox:base")
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlamaConfig(**shape, **ends, max_position_embeddings=8192, tie_word_embeddings=True)
    policy, judge = folder / "policy", folder / "judge"
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(policy)
        config.num_labels = 1
        AutoModelForSequenceClassification.from_config(config).to(torch.bfloat16).save_pretrained(judge)
    for path in (policy, judge):
        tokenizer.save_pretrained(path)
    return policy, judge


def recipe_of(policy: Path, judge: Path, *, changes: list[str], tiny: bool) -> Recipe:
    """The recipe, with the models of this benchmark in place of its own."""
    flags = [f"model.path={policy}", f"supervised.pretrained={policy}", f"preference.start={judge}"]
    flags += ["prompts.path=sandbox", "comparisons.judge=null", "preference.helpful=null", "evaluation=null"]
    flags += [f"reinforcement.trainer.{name}={STEPS}" for name in ("max_steps", "save_steps")]
    if tiny:
        flags += ["reinforcement.max_new_tokens=8", "reinforcement.trainer.per_device_train_batch_size=4"]
    return load_recipe(shipped_recipe("paper-2022"), [*flags, *changes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also without a GPU")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("error: this benchmark needs a GPU (--tiny tries the script on a CPU)", file=sys.stderr)
        raise SystemExit(2)
    with tempfile.TemporaryDirectory() as name:
        policy, judge = random_models(Path(name), shape=TINY if arguments.tiny else LLAMA_1B)
        recipe = recipe_of(policy, judge, changes=arguments.set, tiny=arguments.tiny)
        print("\n".join(measure(recipe, policy=policy, judge=judge, folder=Path(name) / "05-rl-cai")))


def measure(recipe: Recipe, *, policy: Path, judge: Path, folder: Path) -> list[str]:
    """The lines that tell of the step."""
    settings = recipe.reinforcement
    assert settings is not None
    prompts: Any = sandbox.prompts("method", "red-team", 64, seed=0)
    stage = StageFolder(folder)
    with measured() as watch:
        second = Second(watch)
        train_rl(
            prompts,
            model=policy,
            preference_model=judge,
            stage=stage,
            config=settings,
            run=RunContext(progress=second),
        )
    tokenizer = load_tokenizer(policy)
    rows = [row for row in read_rows(folder / ROLLOUTS_FILE) if row["step"] == STEPS]
    read = [len(encode_prompt(tokenizer, row["prompt"])) for row in rows]
    written = sum(row["num_tokens"] for row in rows)
    seconds = second.seconds
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        f"{where}: {settings.algorithm.kind}, {len(rows)} answers, {written / len(rows):.0f} tokens each",
        f"rollout {written / seconds['rollout']:,.0f} tokens/s written; "
        f"update {(sum(read) + written) / seconds['update']:,.0f} tokens/s trained on",
        shares(seconds),
    ]
    return [*lines, memory_line(recipe, longest=max(read))]


def memory_line(recipe: Recipe, *, longest: int) -> str:
    """What was used, beside what the plan would have said."""
    from solon.plan import Sizes

    sizes = Sizes(
        num_red_team=0,
        num_helpful=0,
        prompt=longest,
        longest_prompt=longest,
        answer=0,
        critique_request=0,
        revision_request=0,
        question=0,
        revision_examples=0,
        comparison_examples=0,
    )
    (planned,) = (one for one in recipe_memory(recipe, sizes) if one.stage == "05-rl-cai")
    used = f"{torch.cuda.max_memory_allocated() / GIB:.2f} GiB" if torch.cuda.is_available() else "not measured"
    return f"peak memory {used}; the plan says {planned.peak / GIB:.2f} GiB"


if __name__ == "__main__":
    main()
