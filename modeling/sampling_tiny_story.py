"""How the next token is drawn: temperature, nucleus, and a guard against loops."""

import numpy as np

SMALLEST_TEMPERATURE = 1e-4
BOLDEST = 0.05  # of the likeliest token's probability, at least (min-p, Nguyen et al. 2024, arXiv 2407.01082)
DRY_BASE = 1.75  # growth of the penalty with each further token repeated
DRY_ALLOWED = 3  # tokens that may be repeated freely: most names are no longer
DRY_LONGEST = 24  # repeats are followed back so far


def nucleus(
    logits: np.ndarray, temperature: float, top_p: float, boldness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn: the likeliest at temperature 0 or hardly above, else the likeliest that together
    have the probability top_p (Holtzman et al. 2020, section 3.1).

    Args:
        logits: (vocab,), -inf for what may not come.
        boldness: these tokens, and no others, are drawn at so many times the temperature, save those much less likely
            than the likeliest: where much might come, boldness would bring nonsense.

    Returns:
        their ids (kept,), and their weights, cumulated, (kept,): in proportion to their probabilities.
    """
    if temperature < SMALLEST_TEMPERATURE:
        return np.array([logits.argmax()]), np.ones(1)
    weights = logits - logits.max()
    weights /= temperature
    np.exp(weights, out=weights)
    total = float(weights.sum(dtype=np.float64))
    # Tokens each below (1 - top_p) / vocab are together below 1 - top_p: none of them is in the nucleus.
    (ids,) = (weights > total * (1 - top_p) / len(weights)).nonzero()
    probabilities = weights[ids].astype(np.float64) / total
    if top_p < 1:
        ordered = np.sort(probabilities)[::-1]
        last = min(int(np.searchsorted(ordered.cumsum(), top_p)), len(ordered) - 1)
        kept = probabilities >= ordered[last]
        ids, probabilities = ids[kept], probabilities[kept]
    if boldness != 1:
        kept = probabilities >= BOLDEST * probabilities.max()
        ids, probabilities = ids[kept], probabilities[kept] ** (1 / boldness)
    # Cumulated in the order of the ids, not of their probabilities: rounding can then move no two tokens past each
    # other, and a batch gives what a single story gives.
    return ids, probabilities.cumsum()


def sample(ids: np.ndarray, cumulated: np.ndarray, draw: float) -> int:
    """One token of a nucleus.

    Args:
        draw: a random number in [0, 1).
    """
    return int(ids[min(int(np.searchsorted(cumulated, draw * cumulated[-1], side="right")), len(ids) - 1)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def repetition_penalties(ids: list[int], multiplier: float) -> dict[int, float]:
    """What to take from the logits of tokens that would go on repeating a passage (the DRY sampler, p-e-w 2024).

    The token that followed an earlier occurrence of the last n tokens, n at least DRY_ALLOWED, is made less likely by
    multiplier * DRY_BASE^(n - DRY_ALLOWED). A word by itself is never penalised.

    Args:
        ids: the story so far.
    """
    penalties: dict[int, float] = {}
    if multiplier == 0 or not ids:
        return penalties
    last, place = len(ids) - 1, -1
    while (place := ids.index(ids[last], place + 1)) < last:
        length = 1
        while length < DRY_LONGEST and length <= place and ids[place - length] == ids[-1 - length]:
            length += 1
        if length >= DRY_ALLOWED:
            penalty = multiplier * DRY_BASE ** (length - DRY_ALLOWED)
            penalties[ids[place + 1]] = max(penalty, penalties.get(ids[place + 1], 0.0))
    return penalties
