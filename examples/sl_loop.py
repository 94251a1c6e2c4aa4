"""SL-CAI as one flat script: respond, criticise, revise, fine-tune (Bai et al. 2022, arXiv:2212.08073, section 3.1).

    python examples/sl_loop.py             # 1 of 3, under a minute; then feedback_loop.py and rl_loop.py

The same steps as `solon.supervised`, with the same words and the same draws of principles, but by hand: plain
transformers and torch, one big batch a step, everything in memory. What the library has beyond it: any engine, many
chains at once, rows that survive kill -9, failures that are counted.
"""

import json
import random
from collections import Counter
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from solon import sandbox
from solon.artifact import derive_seed
from solon.constitution import Constitution
from solon.sandbox import oracle
from solon.supervised import critique_prompt, revision_prompt

SEED = 0
CONSTITUTION = "harmless"  # or a file of your own
PRETRAINED, ASSISTANT = sandbox.checkpoint("base"), sandbox.checkpoint("helpful")
OUT = Path("runs/examples/sl-cai")
NUM_RED_TEAM, NUM_HELPFUL, NUM_EVALUATED = 64, 32, 32
ROUNDS = 1  # the paper makes 4
MAX_NEW_TOKENS = 96
STEPS, BATCH_SIZE, LEARNING_RATE = 24, 16, 5e-4

torch.manual_seed(SEED)
logging.set_verbosity_error()
logging.disable_progress_bar()
OUT.mkdir(parents=True, exist_ok=True)
constitution = Constitution.load(CONSTITUTION)
tokenizer = AutoTokenizer.from_pretrained(ASSISTANT)
assistant = AutoModelForCausalLM.from_pretrained(ASSISTANT, dtype=torch.float32).eval()
red_team = sandbox.prompts("method", "red-team", NUM_RED_TEAM, seed=SEED)
helpful = sandbox.prompts("method", "helpful", NUM_HELPFUL, seed=SEED)


def sample(model, dialogues):
    """The next turn of each dialogue at temperature 1, and whether it ended before MAX_NEW_TOKENS."""
    texts = [tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in dialogues]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    out = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
    new = out[:, batch["input_ids"].shape[1] :]
    said = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return list(zip(said, (tokenizer.eos_token_id in ids for ids in new), strict=True))


# ---- respond

prompts = [row["prompt"] for row in red_team]
current = [text for text, _ in sample(assistant, prompts)]
rows = [{"id": row["id"], "response": text, "rounds": []} for row, text in zip(red_team, current, strict=True)]

# ---- criticise and revise: each round a principle is drawn afresh, and the revision takes the response's place

examples = []  # (prompt, completion) pairs to train on
for number in range(1, ROUNDS + 1):
    drawn = [constitution.draw("revision", derive_seed(SEED, row["id"], "principle", number)) for row in red_team]
    asked = [
        critique_prompt(prompt, response, principle.critique)
        for prompt, response, principle in zip(prompts, current, drawn, strict=True)
    ]
    critiques = [text for text, _ in sample(assistant, asked)]
    asked = [
        revision_prompt(turns, critique, principle.revision)
        for turns, critique, principle in zip(asked, critiques, drawn, strict=True)
    ]
    revisions = sample(assistant, asked)
    examples += [(prompt, text) for prompt, (text, ended) in zip(prompts, revisions, strict=True) if ended and text]
    current = [text for text, _ in revisions]
    for row, principle, critique, revision, messages in zip(rows, drawn, critiques, current, asked, strict=True):
        row["rounds"].append(
            {"principle": principle.id, "critique": critique, "revision": revision, "messages": messages}
        )
(OUT / "revisions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

turns, first = prompts[0], rows[0]
print(f"Human: {turns[-1]['content']}\n\nAssistant: {first['response']}\n")
for done in first["rounds"]:
    print(f"[{done['principle']}]\nCritique: {done['critique']}\nRevision: {done['revision']}\n")

# ---- helpful answers keep the model helpful: without them it learns to decline everything

prompts = [row["prompt"] for row in helpful]
answers = sample(assistant, prompts)
examples += [(prompt, text) for prompt, (text, ended) in zip(prompts, answers, strict=True) if ended and text]

# ---- fine-tune the pretrained model; the loss falls on the completion and the token that ends it

model = AutoModelForCausalLM.from_pretrained(PRETRAINED, dtype=torch.float32).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
encoded = []
for prompt, completion in examples:
    start = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
    whole = [*prompt, {"role": "assistant", "content": completion}]
    encoded.append((tokenizer.apply_chat_template(whole, return_dict=False), start))
order, draw = [], random.Random(SEED)
losses = []
for step in range(1, STEPS + 1):
    if not order:
        order = draw.sample(range(len(encoded)), len(encoded))
    batch, order = [encoded[i] for i in order[:BATCH_SIZE]], order[BATCH_SIZE:]
    length = max(len(ids) for ids, _ in batch)
    ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in batch])
    labels_BT = torch.tensor([[-100] * start + ids[start:] + [-100] * (length - len(ids)) for ids, start in batch])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in batch])
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    print(f"step {step:3d} of {STEPS}   loss {loss.item():.3f}")
(OUT / "sft.json").write_text(json.dumps({"examples": examples, "losses": losses}))
model.save_pretrained(OUT)
tokenizer.save_pretrained(OUT)

# ---- what came of it: requests about activities that the method has not seen, judged by the sandbox's oracle

prompts = [row["prompt"] for row in sandbox.prompts("evaluation", "red-team", NUM_EVALUATED, seed=SEED)]
for name, one in (("helpful-only", assistant), ("SL-CAI", model.eval())):
    answers = [text for text, _ in sample(one, prompts)]
    verdicts = Counter(oracle.judge(prompt, text).verdict for prompt, text in zip(prompts, answers, strict=True))
    print(f"{name:12s} on {NUM_EVALUATED} harmful requests: {dict(verdicts)}")
