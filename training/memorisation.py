"""How much of what a model writes it recites: windows of tokens that stand word for word in the training stories.

The measure of Carlini et al. (2023, "Quantifying Memorization Across Neural Language Models"): 50 tokens in a row.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

WINDOW = 50  # tokens
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of a polynomial hash modulo 2^64; odd, so no token's share of it is lost


def recited_share(
    texts: Sequence[str], training: Iterable[str], tokenizer: PreTrainedTokenizerBase, window: int = WINDOW
) -> float:
    """Share of the texts' windows that occur verbatim in a training story (both normalised).

    Raises:
        ValueError: no text is as long as a window.
    """
    return share_among(texts, training_windows(training, tokenizer, window), tokenizer, window)


def training_windows(training: Iterable[str], tokenizer: PreTrainedTokenizerBase, window: int = WINDOW) -> np.ndarray:
    """Hashes of all windows of the training stories, each once, in order; two windows share one once in 2^64 pairs."""
    return np.unique(np.concatenate([window_hashes(ids, window) for ids in _encode(tokenizer, list(training))]))


def share_among(
    texts: Sequence[str], known: np.ndarray, tokenizer: PreTrainedTokenizerBase, window: int = WINDOW
) -> float:
    """Share of the texts' windows whose hash is known.

    Raises:
        ValueError: no text is as long as a window.
    """
    ours = np.concatenate([window_hashes(ids, window) for ids in _encode(tokenizer, list(texts))])
    if not len(ours):
        raise ValueError(f"no text of {window} tokens or more")
    return float(np.isin(ours, known).mean())


def window_hashes(ids: list[int], window: int) -> np.ndarray:
    """One hash (uint64) for each run of `window` tokens; none if the text is shorter."""
    if len(ids) < window:
        return np.zeros(0, dtype=np.uint64)
    powers = FACTOR ** np.arange(window, dtype=np.uint64)
    return np.lib.stride_tricks.sliding_window_view(np.array(ids, dtype=np.uint64), window) @ powers


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    """Some at a time: the encodings of a whole data set take gigabytes."""
    for at in range(0, len(texts), 1000):
        yield from tokenizer(texts[at : at + 1000], add_special_tokens=False)["input_ids"]
