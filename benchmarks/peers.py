"""The peers, built from transformers' own classes in a given shape; their weights are random."""

from collections.abc import Mapping
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2(shape: Mapping[str, Any], vocab_size: int) -> GPT2LMHeadModel:
    """As wide and deep as `shape` (fields of TinyStoryConfig), with learned positions and no dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_positions=1024, n_embd=shape["hidden_size"], n_layer=shape["num_hidden_layers"],
            n_head=shape["num_attention_heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **IDS,
        )
    )  # fmt: skip


def llama(shape: Mapping[str, Any], vocab_size: int) -> LlamaForCausalLM:
    """As wide and deep as `shape` (fields of TinyStoryConfig), with tied embeddings."""
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    grouped = {name: shape[name] for name in ("num_key_value_heads", "head_dim") if shape.get(name)}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, max_position_embeddings=1024, tie_word_embeddings=True,
            **{name: shape[name] for name in same}, **grouped, **IDS,
        )
    )  # fmt: skip
