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
        """Bits of text and ends, over the bytes of the text."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def nats_per_token(self) -> float:
        """The loss that training shows."""
        return self.nats / self.num_tokens


def fitting_stories(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int) -> list[str]:
    """Those that can be scored whole; of the others one line says how many they are.

    Raises:
        ValueError: none can.
    """
    lengths = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    fitting = [text for text, length in zip(texts, lengths, strict=True) if length < context]
    if left_out := len(texts) - len(fitting):
        what = f"{left_out:,} of {len(texts):,} validation stories have more than the model's {context:,} tokens"
        if not fitting:
            raise ValueError(f"{what}; give shorter ones")
        print(f"{what} and are not scored")
    return fitting


def score_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = 8192,
    progress: bool = False,
) -> Score:
    """Score normalised stories, without dropout; arguments and errors as in `token_nats`.

    Raises:
        ValueError: there are no stories.
    """
    if not texts:
        raise ValueError("no stories to score")
    nats = token_nats(model, tokenizer, texts, batch_tokens, progress)
    return Score(
        nats=sum(map(math.fsum, nats)),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=sum(map(len, nats)),
        num_stories=len(texts),
    )


def token_nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = 8192,
    progress: bool = False,
) -> list[list[float]]:
    """-log p of every token of each story and of its end, in nats, without dropout.

    Args:
        texts: stories; each is read as `<sos> text </sos>` and scored from its first token to its end.
        batch_tokens: tokens per forward pass, padding included.

    Raises:
        ValueError: a story is longer than the model's context (in tokens).
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[bos, *ids, eos] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    longest = max(map(len, rows), default=0)
    if longest > model.config.max_position_embeddings + 1:
        raise ValueError(
            f"a story of {longest} tokens does not fit into the context of {model.config.max_position_embeddings}"
        )
    return row_nats(model, rows, batch_tokens, progress)


@torch.no_grad()
def row_nats(
    model: PreTrainedModel, rows: Sequence[list[int]], batch_tokens: int = 8192, progress: bool = False
) -> list[list[float]]:
    """-log p of every token of each row but its first, given those before it, in nats, without dropout.

    Args:
        rows: token ids, of any lengths; one more than the model's context at most.
        batch_tokens: tokens per forward pass, padding included.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    was_training = model.training
    model.eval()
    nats: list[list[float]] = [[] for _ in rows]
    at = 0
    with tqdm(total=len(rows), desc="Scoring", unit=" stories", disable=not progress) as bar:
        while at < len(rows):
            batch = order[at : at + 1]
            while at + len(batch) < len(rows) and (len(batch) + 1) * len(rows[order[at + len(batch)]]) <= batch_tokens:
                batch.append(order[at + len(batch)])
            for index, values in zip(batch, _nats(model, [rows[i] for i in batch]), strict=True):
                nats[index] = values
            at += len(batch)
            bar.update(len(batch))
    model.train(was_training)
    return nats


def _nats(model: PreTrainedModel, rows: list[list[int]]) -> list[list[float]]:
    """Padding stands on the right, where a causal model cannot see it, so no mask is needed."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(ids[:, :-1], use_cache=False).logits.float()  # (batch, time, vocab)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    by_row = losses.view(len(rows), width - 1).tolist()
    return [values[: len(row) - 1] for values, row in zip(by_row, rows, strict=True)]
