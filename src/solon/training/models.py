"""Models and tokenizers as training wants them: safetensors, float32, a padding token that is not the end token."""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from solon.dialogue import Message
from solon.errors import InputError

Model = Any
"""A transformers `PreTrainedModel`; a third party's type, most of which its stubs leave unknown."""
Tokenizer = Any
"""A transformers `PreTrainedTokenizerBase`; likewise."""

TRANSCRIPT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}"
    "{% set names = {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'} %}"
    "{{ '\n\n' + (message['label'] if 'label' in message else names[message['role']]) + ': ' }}"
    "{{ message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""The chat template that a model without one gets, and keeps: the transcript of `render_transcript`."""


class Encoded(NamedTuple):
    """The token ids of a dialogue; the last reply, with its end token, begins at `start`."""

    ids: list[int]
    start: int


def resolve_model(path: str | Path) -> Path:
    """The folder of a model: "sandbox:base" and "sandbox:helpful" are the packaged ones.

    Raises InputError for a folder that holds no model, or none in safetensors.
    """
    if str(path).startswith("sandbox:"):
        from solon import sandbox

        return sandbox.checkpoint(str(path).removeprefix("sandbox:"))
    folder = Path(path)
    if not (folder / "config.json").is_file():
        remedy = (
            "give a folder in Hugging Face format, or sandbox:base; a model of the hub is fetched with `hf download`"
        )
        raise InputError("there is no model here: config.json is missing", path=path, remedy=remedy)
    if not any(folder.glob("*.safetensors")):
        remedy = "convert it with `save_pretrained`; pickled weights can run code and are not loaded"
        raise InputError("there are no *.safetensors here", path=path, remedy=remedy)
    return folder


def load_tokenizer(path: str | Path, *, padding_side: Literal["left", "right"] = "right") -> Tokenizer:
    """The tokenizer of a model folder, with a padding token that differs from the end token, and a chat template.

    With pad = end a reward model reads its score one token early, and the end token is never learnt. So a tokenizer
    without a padding token of its own takes its unknown token, or else a new token "<|pad|>" (`load_causal_lm` and
    `load_sequence_classifier` make the room for it). Without a chat template it takes TRANSCRIPT_TEMPLATE.
    """
    from transformers import AutoTokenizer

    tokenizer = cast(Tokenizer, AutoTokenizer.from_pretrained(resolve_model(path), padding_side=padding_side))
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token", path=path, remedy="set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, None}
        spare = tokenizer.unk_token if tokenizer.unk_token_id not in taken else "<|pad|>"
        tokenizer.add_special_tokens({"pad_token": spare})
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TRANSCRIPT_TEMPLATE
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    return tokenizer


def load_causal_lm(path: str | Path, *, tokenizer: Tokenizer) -> Model:
    """A language model in float32 from safetensors, with an embedding for every token of `tokenizer`."""
    from transformers import AutoModelForCausalLM

    return _fit(_load_weights(AutoModelForCausalLM, resolve_model(path)), tokenizer)


def load_sequence_classifier(path: str | Path, *, tokenizer: Tokenizer, seed: int = 0) -> Model:
    """A model with one score per sequence, in float32. A language model gets a new score head, drawn from `seed`.

    Raises InputError if the tokenizer's padding token is missing or is its end token.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    require_padding(tokenizer)
    set_seed(seed)
    model = _fit(_load_weights(AutoModelForSequenceClassification, resolve_model(path), num_labels=1), tokenizer)
    return float32_head(model)


def require_padding(tokenizer: Tokenizer, model: Model | None = None) -> None:
    """Raise InputError unless a classifier that pads with `tokenizer` reads its score where the reply ends.

    transformers reads it on the last token that is not padding. So the padding token must be there, must not be the end
    token (else the score is read one token early), and must be the one in the configuration of `model`, if it is given.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    remedy = "load the tokenizer with solon.training.load_tokenizer"
    if pad is None or pad == end:
        what = "there is no padding token" if pad is None else f"the padding token {tokenizer.pad_token!r} is the end"
        raise InputError(f"{what}, so that scores would be read on the wrong token", remedy=remedy)
    if model is not None and (known := model.config.get_text_config().pad_token_id) != pad:
        what = f"the tokenizer pads with {pad} and the model knows {known} as padding"
        raise InputError(f"{what}, so that scores would be read on the wrong token", remedy=remedy)


def float32_head(model: Model) -> Model:
    """The same classifier; its last linear layer with one output computes in float32 from now on.

    Also under autocast and behind a backbone in bfloat16, whose own 8 bits of precision would let close scores fall
    together and round the leads that the loss is made of. Names and values of the weights stay as they are.
    """
    score_head(model).float().__class__ = _float32_linear()
    return model


def score_head(model: Model) -> Any:
    """The last linear layer with one output, which a classifier with one label ends with."""
    import torch

    heads = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1]
    assert heads, "a classifier with one label ends with a linear layer"
    return heads[-1]


@cache
def _float32_linear() -> Any:
    import torch

    class Float32Linear(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            with torch.autocast(input.device.type, enabled=False):
                bias = cast(torch.Tensor | None, self.bias)
                exact = None if bias is None else bias.float()
                return torch.nn.functional.linear(input.float(), self.weight.float(), exact)

    return Float32Linear


def _load_weights(architecture: Any, folder: Path, **options: Any) -> Model:
    import torch

    return architecture.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)


def _fit(model: Model, tokenizer: Tokenizer) -> Model:
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def context_length(model_config: Any) -> int:
    """Tokens that a model can read; unlimited architectures count as 2**30."""
    return int(getattr(model_config.get_text_config(), "max_position_embeddings", None) or 2**30)


def context_length_of(path: str | Path) -> int:
    """`context_length` of the model in a folder, whose weights are not loaded."""
    from transformers import AutoConfig

    return context_length(AutoConfig.from_pretrained(resolve_model(path)))


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message]) -> list[int]:
    """Token ids of the prompt and the beginning of the assistant's turn."""
    return tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)


def encode_dialogue(tokenizer: Tokenizer, prompt: Sequence[Message], reply: Message) -> Encoded:
    """Token ids of prompt and reply up to the token that ends the turn, which is added where the template has none.

    What a template writes after that token (often a newline) is left out: sampling stops before it.
    """
    before = encode_prompt(tokenizer, prompt)
    ids: list[int] = tokenizer.apply_chat_template([*prompt, reply], return_dict=False)
    start = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))
    # A padding token that was written into the reply ends nothing.
    special = set(tokenizer.all_special_ids) - {tokenizer.pad_token_id}
    last = max((i for i in range(start, len(ids)) if ids[i] in special), default=None)
    return Encoded([*ids, tokenizer.eos_token_id] if last is None else ids[: last + 1], start)
