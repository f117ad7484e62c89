"""Who is updated how: Muon for the hidden matrices, AdamW for the rest, one schedule for both."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def bf16_is_fast() -> bool:
    """Whether the hardware multiplies bf16 faster than fp32; a processor without units for it is 80 times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Muon(torch.optim.Muon):
    """torch's Muon, which multiplies in bf16, and the same step in fp32 where bf16 is slow: on such a processor an
    update of the flagship takes 10 s instead of 57."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update; in fp32 where the processor has no bf16."""
        if bf16_is_fast():
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters: list[torch.Tensor] = []
            grads: list[torch.Tensor] = []
            buffers: list[torch.Tensor] = []
            self._init_group(group, parameters, grads, buffers)
            momentum, lr = group["momentum"], group["lr"]
            for parameter, grad, buffer in zip(parameters, grads, buffers, strict=True):
                buffer.lerp_(grad, 1 - momentum)
                update = orthogonal(grad.lerp(buffer, momentum), group["ns_coefficients"], group["ns_steps"])
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * max(1, grad.shape[0] / grad.shape[1]) ** 0.5)
        return loss


class BatchedMuon(Muon):
    """The same step for all matrices of a shape at once: one by one, those of a deep model keep a GPU waiting."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            momentum, lr, decay = group["momentum"], group["lr"], group["weight_decay"]
            by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append((parameter, parameter.grad))
            for shape, pairs in by_shape.items():
                parameters = [parameter for parameter, _ in pairs]
                grads = torch.stack([grad for _, grad in pairs])  # (matrices, rows, columns)
                state = self.state[parameters[0]]
                buffer = state.setdefault("momentum_buffers", torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - momentum)
                matrices = grads.lerp(buffer, momentum)
                if bf16_is_fast():
                    matrices = matrices.bfloat16()
                update = orthogonal(matrices, group["ns_coefficients"], group["ns_steps"]).to(grads.dtype)
                torch._foreach_mul_(parameters, 1 - lr * decay)
                torch._foreach_add_(parameters, update.unbind(), alpha=-lr * max(1, shape[0] / shape[1]) ** 0.5)
        return loss


def orthogonal(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly: all singular values are brought to about one by a
    quintic Newton-Schulz iteration (Jordan et al. 2024). One matrix, or several (..., rows, columns)."""
    a, b, c = coefficients
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if tall else wide


def build_optimizers(
    model: nn.Module,
    muon_lr: float,
    adam_lr: float,
    embedding_lr: float,
    weight_decay: float,
    momentum: float = 0.95,
    muon: type[Muon] = Muon,
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the 2-D weights inside the decoder layers; AdamW (Loshchilov and Hutter 2019)
    for the embedding, the output layer, the norms and the biases.

    Args:
        muon_lr: learning rate of the matrices; 0 leaves all parameters to AdamW.
        adam_lr: learning rate of the output layer, the norms and the biases.
        embedding_lr: learning rate of the token embedding; each of its rows moves only when its token occurs.
        weight_decay: of the matrices; embeddings, norms and biases are not decayed.
        muon: `Muon`, or `BatchedMuon` on one GPU.

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
    if matrices and muon_lr > 0:
        optimizers.append(muon(matrices, lr=muon_lr, weight_decay=weight_decay, momentum=momentum))
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
    """Set every group to its peak rate times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
