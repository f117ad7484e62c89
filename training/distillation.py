"""Learning from teachers: beside the word that came, a student learns what other models thought could come.

Where stories are few, a model trained again with its predecessors as teachers is better than they are (born-again
networks, Furlanello et al. 2018, arXiv 1805.04770), and an ensemble averaged in probability and distilled into one
model keeps most of what it gained (Kim et al. 2025, arXiv 2509.14786, section 5). The target of each token is
(1 - share) x the token itself + share x the teachers' mean distribution (Hinton et al. 2015, arXiv 1503.02531).

Teachers need not have learnt to write sentences backwards: where a document has its first `<close>`, it is the data
alone that teach.
"""

from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from modeling.modeling_tiny_story import TinyStoryForCausalLM
from training.attention import document_starts
from training.checkpoint import read_weights
from training.cli import refused
from training.closings import CLOSE_ID
from training.data import IGNORED


class Teachers(nn.Module):
    """Frozen models with their weights in the mean, and how much of a student's target is theirs."""

    def __init__(self, models: list[TinyStoryForCausalLM], weights: list[float], share: float, compiled: bool = False):
        super().__init__()
        self.models = nn.ModuleList(model.eval().requires_grad_(False) for model in models)
        self.weights = [weight / sum(weights) for weight in weights]
        self.share = share
        self._read = [torch.compile(model) if compiled else model for model in models]

    @torch.no_grad()
    def probabilities(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """The mean of the teachers' distributions of the next tokens, (batch, time, vocab), in fp32."""
        said = [
            model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
            .logits.float()
            .softmax(-1)
            .mul_(weight)
            for model, weight in zip(self._read, self.weights, strict=True)
        ]
        return sum(said[1:], start=said[0])

    def added_loss(
        self,
        logits: torch.Tensor,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | float,
    ) -> torch.Tensor:
        """What the teachers' share adds to the loss of the tokens themselves: cross-entropy with the mixed target is
        the student's usual loss plus this.

        Args:
            logits: of the student, (batch, time, vocab).
            input_ids, position_ids, labels: as in `TrainingRows.batch`, (batch, time).
            num_items_in_batch: what the sum over tokens is divided by.
        """
        targets = labels[:, 1:]
        taught = (targets != IGNORED) & ~after_close(input_ids, position_ids)[:, :-1]  # (batch, time - 1)
        said = self.probabilities(input_ids, position_ids)[:, :-1][taught]  # (taught, vocab)
        log_probabilities = logits[:, :-1][taught].float().log_softmax(-1)
        of_targets = log_probabilities.gather(1, targets[taught][:, None]).sum()
        return self.share * (of_targets - (said * log_probabilities).sum()) / num_items_in_batch


def after_close(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Where a `<close>` stands in the same document, here or before, (batch, time)."""
    closes = (input_ids == CLOSE_ID).cumsum(1)
    # The counts never fall, so the last document's start holds the largest count before a start.
    before = torch.where(document_starts(position_ids), closes - (input_ids == CLOSE_ID).long(), 0).cummax(1).values
    return closes > before


def load_teachers(
    folders: list[str], tokenizer: PreTrainedTokenizerBase, attention: str, share: float, compiled: bool
) -> Teachers:
    """Teachers from folders or Hub names, which must share the student's tokens; one named twice counts twice.

    Raises:
        ValueError: a folder holds no such model, or one with another vocabulary.
    """
    models = []
    times = Counter(folders)
    for folder in times:
        with refused(f"teachers {folder}"):
            model = read_weights(TinyStoryForCausalLM, folder)
            model.set_attn_implementation(attention)
        if model.config.vocab_size != len(tokenizer):
            raise ValueError(
                f"teachers {folder}: {model.config.vocab_size} tokens, the student's tokenizer has {len(tokenizer)}"
            )
        models.append(model)
    return Teachers(models, list(times.values()), share, compiled)
