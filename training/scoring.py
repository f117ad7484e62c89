"""Bits per byte: the one number by which models, also of different vocabularies, are compared.

Total nats of the stories' text and their ends / ln 2 / UTF-8 bytes of the text; each story on its own from `<sos>`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Score:
    """Totals over some stories; add two to get the score of all."""

    nats: float
    num_bytes: int
    num_tokens: int
    num_stories: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens


@torch.no_grad()
def score_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = 8192,
    progress: bool = False,
) -> Score:
    """Score normalised stories, without dropout.

    Args:
        texts: stories; each is read as `<sos> text </sos>` and scored from its first token to its end.
        batch_tokens: tokens per forward pass, padding included.

    Raises:
        ValueError: there are no stories, or one is longer than the model's context (in tokens).
    """
    if not texts:
        raise ValueError("no stories to score")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[bos, *ids, eos] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    rows.sort(key=len)
    if len(rows[-1]) > model.config.max_position_embeddings + 1:
        raise ValueError(
            f"a story of {len(rows[-1])} tokens does not fit into the context of {model.config.max_position_embeddings}"
        )
    was_training = model.training
    model.eval()
    nats, at = 0.0, 0
    with tqdm(total=len(rows), desc="Scoring", unit=" stories", disable=not progress) as bar:
        while at < len(rows):
            batch = rows[at : at + 1]
            while at + len(batch) < len(rows) and (len(batch) + 1) * len(rows[at + len(batch)]) <= batch_tokens:
                batch.append(rows[at + len(batch)])
            nats += _nats(model, batch)
            at += len(batch)
            bar.update(len(batch))
    model.train(was_training)
    return Score(
        nats=nats,
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=sum(map(len, rows)) - len(rows),
        num_stories=len(rows),
    )


def _nats(model: PreTrainedModel, rows: list[list[int]]) -> float:
    """Padding stands on the right, where a causal model cannot see it, so no mask is needed."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    real = torch.tensor([[i < len(row) for i in range(1, width)] for row in rows], device=model.device)
    logits = model(ids[:, :-1], use_cache=False).logits.float()  # (batch, time, vocab)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses[real.flatten()].double().sum().item()
