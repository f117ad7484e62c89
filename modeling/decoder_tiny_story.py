"""The ways to run the decoder one token after another: through the model itself, or in int8 on a processor.

All hold a batch of rows with a key/value cache and speak the same few verbs: `fresh`, `start`, `step`, `extend`,
`keep`, `fork`. `open_decoder` chooses: on a processor, one row's time goes into reading the weights and into the price
of many small operations. int8 weights are read four times as fast as fp32 ones; the native decoder does a step in one
operation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from .compiler_tiny_story import build, library
from .int8_tiny_story import Int8Decoder, Int8Weights
from .native_tiny_story import NativeDecoder, NativeWeights
from .packing_tiny_story import packed_weights, why_not_packed

Precision = Literal["auto", "native", "int8", "full"]

logger = logging.get_logger(__name__)


def open_decoder(model: PreTrainedModel, precision: Precision = "auto") -> "Decoder":
    """A decoder without rows.

    Args:
        precision: "full" runs the model as it is, "int8" the int8 decoder in PyTorch, "native" the int8 decoder in C,
            which needs a C compiler; "auto" the fastest there is: on a processor native where there is a compiler,
            else int8 where PyTorch is fast at it, on x86 with AVX2 or AVX-512. A model that something was done to (an
            adapter, a hook, a mask, quantised weights) is run as it is; a warning says so once.

    Raises:
        ValueError: int8 or native is asked for and the model is not on a processor, or something was done to it, or
            there is no compiler; or precision is another word.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    on_cpu = model.device.type == "cpu"
    if precision in ("native", "int8") and not on_cpu:
        raise ValueError(f'precision "{precision}" runs on a processor; the model is on {model.device}: use "full"')
    if precision == "full" or not on_cpu:
        return FullDecoder(model)
    reason = why_not_packed(model)
    if reason is not None and precision != "auto":
        raise ValueError(f'precision "{precision}" cannot tell with this model: {reason}; use "auto" or "full"')
    if reason is not None:
        logger.warning_once(f"stories are told by the model's own forward pass, not by the faster decoders: {reason}")
        return FullDecoder(model)
    if precision == "native" and library() is None:
        raise ValueError(f'precision "native" needs a C compiler: use "auto" or "int8" ({build()[1]})')
    if precision != "int8" and library() is not None:
        return NativeDecoder(packed_weights(model, NativeWeights))
    if precision == "int8" or torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return Int8Decoder(packed_weights(model, Int8Weights))
    return FullDecoder(model)


class FullDecoder:
    """The model's own forward pass and cache; rows are padded on the left."""

    def __init__(self, model: PreTrainedModel):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("an adapter that learnt a prompt puts it before every token; tell with another adapter")
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # (rows, context)

    def fresh(self) -> "FullDecoder":
        """A decoder of the same weights, without rows."""
        return FullDecoder(self.model)

    def start(self, prompts: Sequence[list[int]], room: int = 0) -> torch.Tensor:
        """Read the prompts, one a row, with room for so many tokens more, or as many as there will be; the next token's
        logits (rows, vocab), as of all verbs in fp32 on the CPU."""
        width = max(map(len, prompts))
        ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        return self._forward(torch.tensor(ids, device="cpu"), keep=1)[:, -1]

    def step(self, tokens: Sequence[int | None]) -> torch.Tensor:
        """Append one token to each row, save those whose token is None; logits (rows that took one, vocab)."""
        awake = torch.tensor([token is not None for token in tokens], device="cpu")
        logits = self._append(torch.tensor([[token or 0] for token in tokens], device="cpu"), awake[:, None])
        return logits[awake, -1]

    def extend(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Append equally many tokens to each row; logits after each of them (rows, time, vocab)."""
        ids = torch.tensor(rows, device="cpu")
        return self._append(ids, torch.ones_like(ids))

    def _append(self, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat((self.mask, seen.to(self.mask)), dim=1)
        return self._forward(ids, keep=0)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))

    def fork(self, rows: list[int], cut: list[int] | None = None, room: int = 0) -> "FullDecoder":
        """A decoder of its own whose rows are copies of these, each without its last `cut` tokens; room as in
        `start`."""
        fork = FullDecoder(self.model)
        fork.mask = self.mask[rows]
        if cut is not None:
            from_here = fork.mask.flip(1).cumsum(1).flip(1)  # tokens from each place on
            fork.mask[from_here <= torch.tensor(cut, device=self.model.device)[:, None]] = 0
        index = torch.tensor(rows, device=self.model.device)
        for number, layer in enumerate(self.cache.layers):
            fork.cache.update(layer.keys[index], layer.values[index], number)
        return fork

    def _forward(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with without_dropout(self.model):
            logits = self.model(
                ids.to(self.model.device), attention_mask=self.mask, position_ids=positions,
                past_key_values=self.cache, use_cache=True, logits_to_keep=keep,
            ).logits  # fmt: skip
        return logits.float().cpu()


Decoder = FullDecoder | Int8Decoder


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """A model in the middle of its training tells as it would afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
