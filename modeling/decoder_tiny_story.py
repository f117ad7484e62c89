"""The ways to run the decoder one token after another: through the model itself, or in int8 on a processor.

All hold a batch of rows with a key/value cache and speak the same few verbs: `start`, `step`, `extend`, `keep`,
`fork`. `open_decoder` chooses: on a processor, one row's time goes into reading the weights and into the price of
many small operations. int8 weights are read four times as fast as fp32 ones; the native decoder does a step in one
operation.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .int8_tiny_story import Int8Decoder, Int8Weights
from .native_tiny_story import NativeDecoder, NativeWeights, library

Precision = Literal["auto", "native", "int8", "full"]


def open_decoder(model: PreTrainedModel, precision: Precision = "auto") -> "Decoder":
    """A decoder without rows.

    Args:
        precision: "full" runs the model as it was loaded, "int8" the int8 decoder in PyTorch, "native" the int8
            decoder in C, which needs a C compiler; "auto" the fastest there is: on a processor native where there is a
            compiler, else int8 where PyTorch is fast at it, on x86 with AVX2 or AVX-512.

    Raises:
        ValueError: int8 or native is asked for and the model is not on a processor, or there is no compiler, or
            precision is another word.
    """
    on_cpu = model.device.type == "cpu"
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    if precision in ("native", "int8") and not on_cpu:
        raise ValueError(f'precision "{precision}" runs on a processor; the model is on {model.device}: use "full"')
    if precision == "native" or (precision == "auto" and on_cpu):
        if library() is not None:
            return NativeDecoder(_packed(model, NativeWeights))
        if precision == "native":
            raise ValueError('precision "native" needs a C compiler (cc, or what CC names): use "auto" or "int8"')
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if precision == "int8" or (precision == "auto" and on_cpu and fast):
        return Int8Decoder(_packed(model, Int8Weights))
    return FullDecoder(model)


class FullDecoder:
    """The model's own forward pass and cache; rows are padded on the left."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # (rows, context)

    def start(self, prompts: Sequence[list[int]], room: int = 0) -> torch.Tensor:
        """Read the prompts, one a row, with room for so many tokens more, or as many as there will be; the next token's
        logits (rows, vocab), as of all verbs in fp32 on the CPU."""
        width = max(map(len, prompts))
        ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        return self._forward(torch.tensor(ids), keep=1)[:, -1]

    def step(self, tokens: Sequence[int | None]) -> torch.Tensor:
        """Append one token to each row, save those whose token is None; logits (rows that took one, vocab)."""
        awake = torch.tensor([token is not None for token in tokens])
        logits = self._append(torch.tensor([[token or 0] for token in tokens]), awake[:, None])
        return logits[awake, -1]

    def extend(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Append equally many tokens to each row; logits after each of them (rows, time, vocab)."""
        ids = torch.tensor(rows)
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
        logits = self.model(
            ids.to(self.model.device), attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=keep,
        ).logits  # fmt: skip
        return logits.float().cpu()


Decoder = FullDecoder | Int8Decoder

_PACKED: "WeakKeyDictionary[PreTrainedModel, tuple[int, Int8Weights]]" = WeakKeyDictionary()


def _packed(model: PreTrainedModel, kind: type[Int8Weights]) -> Any:
    """The model's packed weights, packed again after its weights have changed in place."""
    version = sum(0 if p.is_inference() else p._version for p in model.parameters())
    known = _PACKED.get(model)
    if known is None or known[0] != version or type(known[1]) is not kind:
        with torch.inference_mode():
            known = _PACKED[model] = (version, kind(model))
    return known[1]
