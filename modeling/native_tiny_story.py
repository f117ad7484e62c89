"""int8 decoding in one call a step: the same verbs as `Int8Decoder`, its arithmetic in C.

A step of a small model through PyTorch is some 280 small operations, and most of its time is their price.
`NativeDecoder` does a step in one call of the C in `kernel_tiny_story.py`, of which `compiler_tiny_story.py` makes a
library, once for each process, in about a second. Where there is no compiler, `open_decoder` goes on with
`Int8Decoder`.

Weights are those of `Int8Decoder`; what a matrix reads is rounded to integers of about 14 bits, where `Int8Decoder`
rounds to bf16's 8.
"""

import ctypes
import threading
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from typing import Self

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .compiler_tiny_story import library
from .int8_tiny_story import FP32, Int8Decoder, Int8Linear, Int8Weights, Norm
from .kernel_tiny_story import BLOCK, STEP
from .threads_tiny_story import threads


class _Linear(Structure):
    _fields_ = [(name, c_void_p) for name in ("weight", "scale", "bias")] + [
        (name, c_int32) for name in ("in", "out", "limit")
    ]


class _Norm(Structure):
    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Linear) for name in ("qkv", "out", "inner", "outer")),
        ("norm1", _Norm),
        ("norm2", _Norm),
        ("qk_gain", c_void_p),
    ]


class _Model(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        *((name, c_void_p) for name in ("embedding", "cos", "sin", "sinusoids")),
        ("norm", _Norm),
        ("head", _Linear),
        ("eps", c_float),
        *((name, c_int32) for name in (
            "num_layers", "hidden", "heads", "kv_heads", "head_dim", "feed_forward", "gated", "pre_norm"
        )),
    ]  # fmt: skip


_OF_THREAD = threading.local()


def _memory(floats: int) -> torch.Tensor:
    """At least so many floats to work in, this thread's own: page faults of memory fresh for each step cost a
    seventh of its time."""
    memory: torch.Tensor | None = getattr(_OF_THREAD, "memory", None)
    if memory is None or memory.numel() < floats:
        memory = _OF_THREAD.memory = torch.empty(floats, **FP32)
    return memory


def _integers(values: list[int]) -> ctypes.Array:
    return (c_int32 * len(values))(*values)


class NativeWeights(Int8Weights):
    """A model's packed weights, and where the kernel finds them."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        config = self.config
        self._kept: list[object] = []  # what the kernel's pointers point at
        layers = [
            _Layer(
                *(self._linear(matrix) for matrix in (layer.qkv, layer.out, layer.inner, layer.outer)),
                self._norm(layer.norm1),
                self._norm(layer.norm2),
                self._pointer(layer.qk_gain if config.qk_norm else None),
            )
            for layer in self.layers
        ]
        rotary = config.position_type == "rope"
        tables = (self.cos, self.sin, None) if rotary else (None, None, self.sinusoids)
        self.struct = _Model(
            (_Layer * len(layers))(*layers),
            *map(self._pointer, (self.embedding, *tables)),
            self._norm(self.norm),
            self._linear(self.head),
            config.norm_eps,
            len(layers),
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.intermediate_size,
            config.hidden_act == "swiglu",
            config.norm_position == "pre",
        )
        kernel = library()
        assert kernel is not None
        self.memory_of_token: int = kernel.memory_of_token(ctypes.byref(self.struct))

    def _pointer(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: Norm | None) -> _Norm:
        return _Norm(*map(self._pointer, norm or (None, None)))

    def _linear(self, matrix: Int8Linear) -> _Linear:
        outputs, inputs = matrix.weight.shape
        weight = pad(matrix.weight, (0, -inputs % STEP, 0, -outputs % BLOCK))
        width = weight.shape[1]
        weight = weight.view(-1, BLOCK, width // 2, 2).transpose(1, 2)  # (out / BLOCK, in / 2, BLOCK, 2)
        scale, bias = (
            None if x is None else pad(x.float(), (0, -outputs % BLOCK)) for x in (matrix.scale, matrix.bias)
        )
        limit = min(2**15 - 1, (2**31 - 1) // (127 * inputs))  # so large that no sum leaves 32 bits
        return _Linear(*map(self._pointer, (weight, scale, bias)), width, outputs, limit)


class NativeDecoder(Int8Decoder):
    """Rows as in `Int8Decoder`, with one cache for all layers, and a fork does not copy what its rows have read: it
    reads it where it is, so a fork is good until the decoder it came from keeps other rows."""

    weights: NativeWeights

    def __init__(self, weights: NativeWeights):
        super().__init__(weights)
        self.bases: list[torch.Tensor] = []  # another decoder's cache
        self.base_rows: list[int] = []  # for each row, the row there that it goes on from
        self.shared: list[int] = []  # and how many tokens of it are its own first ones

    def step(self, tokens: Sequence[int | None]) -> torch.Tensor:
        """As `Int8Decoder.step`; a resting row costs nothing."""
        awake = [row for row, token in enumerate(tokens) if token is not None]
        return self._append(awake, [token for token in tokens if token is not None], last_only=True)[:, -1]

    def extend(self, rows: Sequence[list[int]], last_only: bool = False) -> torch.Tensor:
        """As `Int8Decoder.extend`."""
        return self._append(list(range(len(rows))), [token for row in rows for token in row], last_only)

    def _append(self, rows: list[int], ids: list[int], last_only: bool) -> torch.Tensor:
        """Append equally many of the ids, row after row, to these rows; their logits as `extend` gives them."""
        kernel, config = library(), self.config
        assert kernel is not None
        time = len(ids) // len(rows)
        if max(self.lengths) + time > config.max_position_embeddings:
            raise IndexError(f"more than {config.max_position_embeddings} tokens, the model's context")
        if not self.bases:
            self.base_rows = self.shared = [0] * len(self.lengths)
        self._reserve(time)
        (cache,), (base,) = self.caches, self.bases or self.caches
        base_rows, shared, lengths = (
            _integers([x[row] for row in rows]) for x in (self.base_rows, self.shared, self.lengths)
        )
        logits = torch.empty(len(rows), 1 if last_only else time, config.vocab_size, **FP32)
        memory = _memory(len(ids) * self.weights.memory_of_token)
        kernel.forward(
            ctypes.byref(self.weights.struct), c_void_p(cache.data_ptr()), cache.shape[2], _integers(rows),
            c_void_p(base.data_ptr()), base.shape[2], base_rows, shared, _integers(ids), lengths, len(rows), time,
            last_only, threads(), c_void_p(memory.data_ptr()), c_void_p(logits.data_ptr()),
        )  # fmt: skip
        for row in rows:
            self.lengths[row] += time
        return logits

    def keep(self, rows: list[int]) -> None:
        """As `Int8Decoder.keep`."""
        super().keep(rows)
        if self.bases:
            self.base_rows, self.shared = ([x[row] for row in rows] for x in (self.base_rows, self.shared))

    def fork(self, rows: list[int], cut: list[int] | None = None, room: int = 0) -> Self:
        """As `Int8Decoder.fork`, without copying what was read."""
        fork = type(self)(self.weights)
        fork.lengths = [self.lengths[row] - tokens for row, tokens in zip(rows, cut or [0] * len(rows), strict=True)]
        if not self.bases:
            fork.bases, fork.base_rows, fork.shared = list(self.caches), list(rows), list(fork.lengths)
            fork.caches = fork._empty(len(rows), room)
            return fork
        # A fork of a fork shares what that one shares, and copies the little that is that one's own.
        fork.bases, fork.base_rows = self.bases, [self.base_rows[row] for row in rows]
        fork.shared = [min(self.shared[row], length) for row, length in zip(rows, fork.lengths, strict=True)]
        fork.caches = fork._empty(len(rows), fork._own() + room)
        for place, row in enumerate(rows):
            fork._take(place, self, row)
        return fork

    def _own(self) -> int:
        return max(length - shared for length, shared in zip(self.lengths, self.shared, strict=True))

    def _empty(self, rows: int, tokens: int) -> list[torch.Tensor]:
        heads = len(self.weights.layers) * 2 * self.config.num_key_value_heads
        return [torch.empty(rows, heads, max(tokens, 1), self.config.head_dim, **FP32)]
