"""Attention for training on packed rows; importing this module makes the names known to transformers.

`causal_blocks`, on a CPU: a compiled softmax over blocks that fit the caches is faster than SDPA, and what causality
hides need not be computed. `packed_documents`, on a GPU: each document is a sequence of its own, so nothing is computed
that a mask would hide, where SDPA with a mask has only its slower kernels.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from modeling.modeling_tiny_story import MultiHeadAttention, eager_attention_forward

BLOCK = 128  # queries
TOKENS_A_DOCUMENT = 32  # in some rows, on average at least; TinyStories' have five times as many


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


def document_starts(position_ids: torch.Tensor) -> torch.Tensor:
    """Where a document, a later piece of one or a row's padding begins, (batch, time): positions do not go on there."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts


def refuse_many_documents(position_ids: torch.Tensor, batch_rows: int) -> None:
    """
    Args:
        position_ids: of rows, (rows, time), from which batches of batch_rows will be drawn.

    Raises:
        ValueError: a batch might hold more documents than `packed_documents` has room for.
    """
    documents = document_starts(position_ids).sum(1)  # (rows,)
    found = int(documents.topk(min(batch_rows, len(documents))).values.sum())
    most = batch_rows * position_ids.shape[1] // TOKENS_A_DOCUMENT
    if found > most:
        raise ValueError(
            f"stories too short for attention packed_documents: a batch of {batch_rows} rows may hold {most}, of "
            f"{TOKENS_A_DOCUMENT} tokens on average, and might hold {found}; attention sdpa takes any"
        )


def packed_documents_arguments(position_ids: torch.Tensor) -> dict[str, Any]:
    """What a model's forward pass needs besides for `packed_documents`: where the documents of position_ids (batch,
    time) begin, in the names that transformers has for it. Too many of them run together, for a check here would keep a
    GPU waiting at every batch: `refuse_many_documents` checks all batches at once."""
    total, time = position_ids.numel(), position_ids.shape[1]
    # A fixed number, so that a compiled model sees one shape: those that are left over have no tokens.
    most = total // TOKENS_A_DOCUMENT
    starts = document_starts(position_ids).flatten()
    number = (starts.long().cumsum(0) - 1).where(starts, most).clamp(max=most)  # of the document that begins, (total,)
    bounds = torch.full((most + 1,), total, dtype=torch.int32, device=position_ids.device)
    bounds.scatter_(0, number, torch.arange(total, dtype=torch.int32, device=position_ids.device))
    bounds[most] = total
    return {"cu_seq_lens_q": bounds, "max_length_q": time}


def packed_documents_attention_forward(
    module: MultiHeadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Flash attention (Dao 2023, arXiv 2307.08691) over documents of different lengths, in bf16.

    Args:
        query, key, value: (batch, heads, time, head_dim), as many heads each.
        cu_seq_lens_q: places where the documents begin in the rows laid end to end, and the end (documents + 1,).
        max_length_q: tokens of the longest document, or more.

    Returns:
        output (batch, time, heads, head_dim), and no weights.
    """
    batch, heads, time, head_dim = query.shape
    flat = [x.transpose(1, 2).reshape(batch * time, heads, head_dim).bfloat16() for x in (query, key, value)]
    output = torch.ops.aten._flash_attention_forward(
        *flat, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, 0.0, True, False, scale=scaling
    )[0]
    return output.view(batch, time, heads, head_dim), None


AttentionInterface.register("causal_blocks", causal_blocks_attention_forward)
AttentionMaskInterface.register("causal_blocks", eager_mask)
AttentionInterface.register("packed_documents", packed_documents_attention_forward)
