"""Who is updated how: Muon for the hidden matrices, AdamW for the rest, one schedule for both."""

import torch
from torch import nn


def build_optimizers(
    model: nn.Module, muon_lr: float, adam_lr: float, embedding_lr: float, weight_decay: float, momentum: float = 0.95
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the 2-D weights inside the decoder layers; AdamW (Loshchilov and Hutter 2019)
    for the embedding, the output layer, the norms and the biases.

    Args:
        muon_lr: learning rate of the matrices; 0 leaves all parameters to AdamW.
        adam_lr: learning rate of the output layer, the norms and the biases.
        embedding_lr: learning rate of the token embedding; each of its rows moves only when its token occurs.
        weight_decay: of the matrices; embeddings, norms and biases are not decayed.

    Returns:
        The optimisers, every trainable parameter in exactly one of their groups, each group with its peak learning
        rate as `peak_lr`.

    Raises:
        ValueError: a learning rate that cannot train.
    """
    if not (adam_lr > 0 and embedding_lr > 0 and muon_lr >= 0):
        raise ValueError(
            "adam_lr and embedding_lr must be above 0 and muon_lr at least 0, "
            f"got {adam_lr}, {embedding_lr} and {muon_lr}"
        )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and "decoder_layers" in name]
    embedding = [p for name, p in parameters.items() if "decoder_embedding" in name]
    chosen = {id(p) for p in matrices + embedding}
    others = [p for p in parameters.values() if id(p) not in chosen]
    assert len(matrices) + len(embedding) + len(others) == len(parameters)

    adam_groups = [
        {"params": embedding, "lr": embedding_lr, "weight_decay": 0.0},
        {"params": others, "lr": adam_lr, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if muon_lr > 0:
        optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, momentum=momentum))
    else:
        adam_groups.append({"params": matrices, "lr": adam_lr, "weight_decay": weight_decay})
    optimizers.append(torch.optim.AdamW(adam_groups, betas=(0.9, 0.95), eps=1e-8))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the peak learning rate at a step (from 0): linear up, constant, linear to zero at the end."""
    decay_steps = max(1, round(num_steps * decay_fraction))
    return min(1.0, (step + 1) / max(1, warmup_steps), (num_steps - step) / decay_steps)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
