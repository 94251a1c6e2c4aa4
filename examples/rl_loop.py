"""RL-CAI as one flat script: REINFORCE with a leave-one-out baseline against a preference model, and a KL to SL-CAI.

    python examples/rl_loop.py             # 3 of 3, under a minute; after feedback_loop.py

A step: every prompt is answered several times; the reward of an answer is the preference model's score, less a penalty
if it was cut, less beta times log pi(y|x) - log pi_0(y|x); its advantage is its reward less the mean reward of the
other answers to the same prompt (Ahmadian et al. 2024, arXiv:2402.14740). The library's `solon.reinforcement` has
TRL's RLOOTrainer do the same, with checkpoints and resuming. The paper has PPO here (arXiv:2212.08073, section 4.1).
"""

import json
import random
from collections import Counter
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from solon import sandbox
from solon.sandbox import oracle

SEED = 0
POLICY, PREFERENCE_MODEL = Path("runs/examples/sl-cai"), Path("runs/examples/preference-model")
OUT = Path("runs/examples/rl-cai")
NUM_PROMPTS, NUM_EVALUATED = 64, 32  # of each kind, red-team and helpful
STEPS, PROMPTS_PER_STEP, NUM_GENERATIONS, LEARNING_RATE = 16, 8, 4, 1e-4
MAX_NEW_TOKENS, BETA, TRUNCATION_PENALTY = 96, 0.05, 2.0

for folder in (POLICY, PREFERENCE_MODEL):
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: run examples/sl_loop.py, then examples/feedback_loop.py")
torch.manual_seed(SEED)
logging.set_verbosity_error()
logging.disable_progress_bar()
OUT.mkdir(parents=True, exist_ok=True)
tokenizer = AutoTokenizer.from_pretrained(POLICY)
end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
policy = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()  # there is no dropout to switch on
reference = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
preference = AutoModelForSequenceClassification.from_pretrained(PREFERENCE_MODEL, dtype=torch.float32).eval()
scale = json.loads((PREFERENCE_MODEL / "solon.json").read_text())["scale"]
optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
prompts = [
    row["prompt"] for kind in ("red-team", "helpful") for row in sandbox.prompts("method", kind, NUM_PROMPTS, seed=SEED)
]


def sample(model, dialogues):
    """Token ids of prompts (padded on the left) and answers, the mask of what is not padding, the prompts' width."""
    texts = [tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in dialogues]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    ids_BT = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
    width = batch["input_ids"].shape[1]
    ends_BT = (ids_BT[:, width:] == end).long()
    answer_BT = (ends_BT.cumsum(1) - ends_BT == 0).long()  # up to the first end token, which belongs to the answer
    return ids_BT, torch.cat([batch["attention_mask"], answer_BT], 1), width


def log_probability(model, ids_BT, mask_BT, width):
    """log p(answer | prompt) in nats, summed over the answer's tokens; rotary positions do not mind the padding."""
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, width - 1 : -1]
    logprob_BT = logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, width:, None])[..., 0]
    return (logprob_BT * mask_BT[:, width:]).sum(1)


@torch.inference_mode()
def score(dialogues, answers):
    """The preference model's score of each answer, on the scale of the replies that it was trained on."""
    replies = [[*turns, {"role": "assistant", "content": text}] for turns, text in zip(dialogues, answers, strict=True)]
    rows = [tokenizer.apply_chat_template(turns, return_dict=False) for turns in replies]
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    raw_B = preference(input_ids=ids_BT, attention_mask=(ids_BT != pad).long()).logits[:, 0]
    return (raw_B - scale["mean"]) / scale["std"]


# ---- the loop

order, draw, rollouts = [], random.Random(SEED), []
for step in range(1, STEPS + 1):
    if len(order) < PROMPTS_PER_STEP:
        order = draw.sample(range(len(prompts)), len(prompts))
    chosen, order = order[:PROMPTS_PER_STEP], order[PROMPTS_PER_STEP:]
    dialogues = [prompts[i] for i in chosen for _ in range(NUM_GENERATIONS)]

    ids_BT, mask_BT, width = sample(policy, dialogues)
    answers = [text.strip() for text in tokenizer.batch_decode(ids_BT[:, width:], skip_special_tokens=True)]
    cut_B = ~((ids_BT[:, width:] == end).any(1))
    logprob_B = log_probability(policy, ids_BT, mask_BT, width)
    with torch.no_grad():
        kl_B = logprob_B.detach() - log_probability(reference, ids_BT, mask_BT, width)
    score_B = score(dialogues, answers)
    reward_B = score_B - TRUNCATION_PENALTY * cut_B - BETA * kl_B

    reward_PG = reward_B.view(PROMPTS_PER_STEP, NUM_GENERATIONS)
    others_PG = (reward_PG.sum(1, keepdim=True) - reward_PG) / (NUM_GENERATIONS - 1)
    advantage_B = (reward_PG - others_PG).flatten()
    ratio_B = (logprob_B - logprob_B.detach()).exp()  # 1 in value: every answer is used once; its gradient is logprob's
    loss = -(advantage_B * ratio_B).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()

    tokens_BT = [ids[mask.bool()].tolist() for ids, mask in zip(ids_BT[:, width:], mask_BT[:, width:], strict=True)]
    columns = {"prompt": dialogues, "completion": answers, "tokens": tokens_BT, "cut": cut_B.tolist()}
    columns |= {"score": score_B.tolist(), "kl": kl_B.tolist(), "reward": reward_B.tolist()}
    columns |= {"advantage": advantage_B.tolist(), "logprob": logprob_B.tolist()}
    rollouts += [{"step": step, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)]
    print(
        f"step {step:3d} of {STEPS}   score {score_B.mean():+.2f}   kl {kl_B.mean():.2f}"
        f"   cut {cut_B.float().mean():.2f}   {answers[0][:70]!r}"
    )
(OUT / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
policy.save_pretrained(OUT)
tokenizer.save_pretrained(OUT)

# ---- what came of it: requests about activities that the method has not seen, judged by the sandbox's oracle

unseen = [row["prompt"] for row in sandbox.prompts("evaluation", "red-team", NUM_EVALUATED, seed=SEED)]
for name, model in (("SL-CAI", reference), ("RL-CAI", policy)):
    ids_BT, mask_BT, width = sample(model, unseen)
    answers = tokenizer.batch_decode(ids_BT[:, width:], skip_special_tokens=True)
    verdicts = Counter(oracle.judge(prompt, text).verdict for prompt, text in zip(unseen, answers, strict=True))
    print(f"{name} on {NUM_EVALUATED} harmful requests: {dict(verdicts)}")
