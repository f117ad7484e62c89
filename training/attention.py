"""`causal_blocks`: attention for training on a CPU, where a compiled softmax over blocks that fit the caches is faster
than SDPA, and what causality hides need not be computed. Importing this module makes the name known to transformers."""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from modeling.modeling_tiny_story import MultiHeadAttention, eager_attention_forward

BLOCK = 128  # queries


def causal_blocks_attention_forward(
    module: MultiHeadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The eager attention, a block of queries at a time, each with the keys up to its last query's place.

    Args:
        query: (batch, heads, time, head_dim); key, value: (batch, kv_heads, context, head_dim).
        attention_mask: causal, added to the scores, (batch, 1, time, context).

    Returns:
        output (batch, time, heads, head_dim), and no weights.
    """
    time, past = query.shape[2], key.shape[2] - query.shape[2]
    outputs = []
    for start in range(0, time, BLOCK):
        end = min(start + BLOCK, time)
        seen = slice(past + end)
        output, _ = eager_attention_forward(
            module, query[:, :, start:end], key[:, :, seen], value[:, :, seen],
            attention_mask[:, :, start:end, seen], scaling,
        )  # fmt: skip
        outputs.append(output)  # (batch, end - start, heads, head_dim)
    return torch.cat(outputs, dim=1), None


AttentionInterface.register("causal_blocks", causal_blocks_attention_forward)
AttentionMaskInterface.register("causal_blocks", eager_mask)
