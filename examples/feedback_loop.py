"""AI feedback and the preference model as one flat script (Bai et al. 2022, arXiv:2212.08073, section 4.1).

    python examples/feedback_loop.py       # 2 of 3, under a minute; after sl_loop.py

SL-CAI answers every prompt twice. A judge reads both answers under a drawn principle, in both orders, and the
probabilities that it gives to " (A)" and " (B)" become a soft label. A preference model is trained on the labels, and
on comparisons of helpfulness, for which the sandbox's oracle stands in. The library's `solon.feedback` and
`solon.preference` ask the same questions and compute the same numbers.
"""

import json
import random
import statistics
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from solon import sandbox
from solon.artifact import derive_seed
from solon.constitution import Constitution
from solon.feedback import OPTIONS, answer_start, comparison_prompt
from solon.sandbox import oracle

SEED = 0
CONSTITUTION = "harmless"
POLICY, JUDGE = Path("runs/examples/sl-cai"), sandbox.checkpoint("base")
OUT = Path("runs/examples/preference-model")
NUM_RED_TEAM, NUM_HELPFUL = 64, 64
MAX_NEW_TOKENS = 96
STEPS, BATCH_SIZE, LEARNING_RATE = 20, 16, 2e-4

if not POLICY.is_dir():
    raise SystemExit(f"{POLICY} is not there: run examples/sl_loop.py first, or set POLICY to another model folder")
torch.manual_seed(SEED)
logging.set_verbosity_error()
logging.disable_progress_bar()
OUT.mkdir(parents=True, exist_ok=True)
constitution = Constitution.load(CONSTITUTION)
tokenizer = AutoTokenizer.from_pretrained(POLICY)
policy = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
judge_tokenizer = AutoTokenizer.from_pretrained(JUDGE)
judge = AutoModelForCausalLM.from_pretrained(JUDGE, dtype=torch.float32).eval()
red_team = sandbox.prompts("method", "red-team", NUM_RED_TEAM, seed=SEED)
helpful = sandbox.prompts("method", "helpful", NUM_HELPFUL, seed=SEED)

# ---- pairs: two answers to every prompt

prompts = [*red_team, *helpful]
texts = [
    tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    for row in prompts
    for _ in "ab"
]
batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
out = policy.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
pairs = [
    {"id": f"{row['id']}/1", "prompt": row["prompt"], "kind": row["kind"], "a": a.strip(), "b": b.strip()}
    for row, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)
    if a.strip() != b.strip() and a.strip() and b.strip()
]
print(f"{len(pairs)} pairs; of the other {len(prompts) - len(pairs)} both answers are the same, or one is empty")

# ---- labels: the judge's log-probability of each option, after the beginning of the answer


@torch.inference_mode()
def log_probabilities(dialogue):
    """log p of each of OPTIONS as the judge's next words, in nats."""
    text = judge_tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True) + answer_start()
    before, *wholes = judge_tokenizer(
        [text, *(text + option for option in OPTIONS)], add_special_tokens=False
    ).input_ids
    shared = next(i for i, tokens in enumerate(zip(*wholes, strict=False)) if len(set(tokens)) > 1)
    shared = min(shared, len(before))  # options are compared after the tokens that they share with the prompt
    found = []
    for ids in wholes:
        logprobs_TV = judge(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found.append(sum(logprobs_TV[place - 1, ids[place]].item() for place in range(shared, len(ids))))
    return found


def p_first(prompt, first, second, question):
    """Probability that the judge calls the first answer the better one, given that it names one of the two."""
    logprob_a, logprob_b = log_probabilities(comparison_prompt(prompt, first, second, question))
    return torch.sigmoid(torch.tensor(logprob_a - logprob_b, dtype=torch.float64)).item()


comparisons = []
for pair in pairs:
    prompt, a, b = pair["prompt"], pair["a"], pair["b"]
    if pair["kind"] == "red-team":
        (principle,) = constitution.sample("comparison", 1, derive_seed(SEED, pair["id"], "principles"))
        both = (p_first(prompt, a, b, principle.comparison), p_first(prompt, b, a, principle.comparison))
        p = (both[0] + 1 - both[1]) / 2  # the mean of both orders: no place is preferred
        comparisons.append({**pair, "principle": principle.id, "p": p, "both": both})
    elif (p := oracle.prefers_helpful(prompt, a, b)) != 0.5:
        comparisons.append({**pair, "principle": None, "p": p, "both": None})
(OUT / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in comparisons))
labels = [row["p"] for row in comparisons if row["principle"]]
print(
    f"{len(labels)} labels from the judge, {len(comparisons) - len(labels)} from the oracle; the first of the judge's:"
)
for row in comparisons[:3]:
    print(f"  p(a better) {row['p']:.2f} [{row['principle']}]\n    a: {row['a'][:90]}\n    b: {row['b'][:90]}")

# ---- the preference model: one number per dialogue, and sigmoid of the difference is to be the label

torch.manual_seed(SEED)
model = AutoModelForSequenceClassification.from_pretrained(POLICY, num_labels=1, dtype=torch.float32).train()
model.config.pad_token_id = tokenizer.pad_token_id
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
replies = [[*row["prompt"], {"role": "assistant", "content": row[x]}] for x in "ab" for row in comparisons]
encoded = [tokenizer.apply_chat_template(turns, return_dict=False) for turns in replies]
encoded_a, encoded_b = encoded[: len(comparisons)], encoded[len(comparisons) :]


def raw_scores(rows):
    """The model's number for each dialogue, read on its last token."""
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=tokenizer.pad_token_id)
    return model(input_ids=ids_BT, attention_mask=(ids_BT != tokenizer.pad_token_id).long()).logits[:, 0]


order, draw = [], random.Random(SEED)
losses = []
for step in range(1, STEPS + 1):
    if not order:
        order = draw.sample(range(len(comparisons)), len(comparisons))
    chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
    lead_B = raw_scores([encoded_a[i] for i in chosen]) - raw_scores([encoded_b[i] for i in chosen])
    p_B = torch.tensor([comparisons[i]["p"] for i in chosen])
    loss = -(p_B * logsigmoid(lead_B) + (1 - p_B) * logsigmoid(-lead_B)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    right = ((lead_B > 0) == (p_B > 0.5)).float().mean().item()
    print(f"step {step:3d} of {STEPS}   loss {loss.item():.3f}   ranked as labelled {right:.2f}")

# ---- scores have no zero and no unit of their own: reinforcement divides by their spread

with torch.inference_mode():
    scores = [raw_scores([row]).item() for row in (*encoded_a, *encoded_b)]
scale = {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores)}
model.save_pretrained(OUT)
tokenizer.save_pretrained(OUT)
(OUT / "solon.json").write_text(json.dumps({"scale": scale}))
(OUT / "training.json").write_text(json.dumps({"losses": losses, "raw_scores": scores}))
