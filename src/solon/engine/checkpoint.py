"""Loading a model folder for the local engine, and what can go wrong with one, in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

from solon.engine import LocalEngineConfig
from solon.errors import InputError

_REMEDY = "it must load with AutoModelForCausalLM.from_pretrained, without remote code"


def find_folder(path: str) -> Path:
    """The folder of a model, seen to hold one; "sandbox:NAME" is a packaged one."""
    if path.startswith("sandbox:"):
        from solon.sandbox import checkpoint

        return checkpoint(path.removeprefix("sandbox:"))
    folder = Path(path).expanduser()
    need = "a model is a folder in Hugging Face format: config.json, *.safetensors and the tokenizer's files"
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such model folder"
        raise InputError(what, path=path, remedy=f"{need}; nothing is downloaded")
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        remedy = "merge the adapter into its base model first" if adapter else need
        raise InputError("not a model folder: it has no config.json", path=path, remedy=remedy)
    if not any(folder.glob("*.safetensors")):
        remedy = (
            "only safetensors are loaded; convert with `model.save_pretrained`" if any(folder.glob("*.bin")) else need
        )
        raise InputError("not a model folder: it has no *.safetensors weights", path=path, remedy=remedy)
    if not any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    ):
        raise InputError(
            "not a model folder: it has no tokenizer", path=path, remedy="save the tokenizer beside the model"
        )
    return folder


class Loaded(NamedTuple):
    """A model in evaluation mode on its device, and its tokenizer."""

    model: Any
    tokenizer: Any


def load_model(folder: Path, config: LocalEngineConfig) -> Loaded:
    """What the folder holds. Raises InputError where it cannot be loaded, or not whole, or not on the device."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("warm")
        auto = cast(Any, AutoModelForCausalLM)
        model, info = auto.from_pretrained(
            folder,
            # Layers in int8 are made from float32 ones, beside which they stand.
            dtype=torch.bfloat16 if config.dtype == "bfloat16" else torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        AttributeError,
        ImportError,
        SafetensorError,
    ) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"the model cannot be loaded: {first}", path=config.path, remedy=_REMEDY) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
        what = f"the weights lack {len(lacking)} tensors of a causal language model, such as {lacking[0]}"
        raise InputError(what, path=config.path, remedy="give the folder of a language model, not of a classifier")
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if config.dtype == "int8" and device != "cpu":
        raise InputError(
            f"`dtype: int8` is for CPUs, and `device: auto` is {device!r} here",
            path=config.path,
            remedy="set `device: cpu`, or `dtype: bfloat16`",
        )
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {error}", remedy="set `device: cpu` or `auto`") from error
    if model.config._attn_implementation == "sdpa":
        from solon.engine.attention import ATTENTION

        model.set_attn_implementation(ATTENTION)
    return Loaded(model, tokenizer)


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text: those of generation_config.json and the tokenizer's own."""
    given = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [given] if isinstance(given, int) else list(given or ())
    return frozenset(int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None)


def context_length(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model can read and write together; None where its config does not tell."""
    config = model.config.get_text_config(decoder=True).to_dict()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < 10**9 else None
