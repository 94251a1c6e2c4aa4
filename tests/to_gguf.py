"""A Llama with a byte-level BPE tokenizer, such as the sandbox's, as a file of llama.cpp: to_gguf.py FOLDER FILE [bos].

With "bos" every text begins with the token for that. Weights are float32, so that log-probabilities can be compared.
llama.cpp turns pairs of neighbouring rows of q and k in its rotary embedding, transformers rows half a head apart.
Needs gguf, numpy and safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def name_of(tensor: str) -> str:
    """llama.cpp's name of a tensor of transformers' Llama."""
    parts = tensor.removeprefix("model.").removesuffix(".weight").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{LAYER[parts[2]]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}[parts[0]]


def turned(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of q or k, each head's two halves interleaved."""
    return weights.reshape(num_heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def write_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], *, bos: bool) -> None:
    """The vocabulary, its merges, its special tokens and the chat template."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    added = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    tokens = sorted({**vocabulary, **added}.items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    kinds = (gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token, _ in tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(bos)
    if config["bos_token_id"] is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    writer.add_chat_template(template.replace("{% generation %}", "").replace("{% endgeneration %}", ""))


def main(folder: Path, file: Path, *, bos: bool) -> None:
    """Write the file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    write_tokenizer(writer, folder, config, bos=bos)
    for name, weights in load_file(folder / "model.safetensors").items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        which = next((num for part, num in heads.items() if part in name), None)
        values = weights.astype(np.float32)
        writer.add_tensor(name_of(name), np.ascontiguousarray(turned(values, which) if which else values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), bos="bos" in sys.argv[3:])
