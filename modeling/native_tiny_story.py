"""int8 decoding in one call a step: the same verbs as `Int8Decoder`, its arithmetic in C.

A step of a small model through PyTorch is some 280 small operations, and most of its time is their price.
`NativeDecoder` does a step in one call of the C in `kernel_tiny_story.py`, which the machine's own compiler turns into
a library for the machine's own processor, once for each process, in about a second. Where there is no compiler,
`open_decoder` goes on with `Int8Decoder`.

Weights are those of `Int8Decoder`; what a matrix reads is rounded to integers of about 14 bits, where `Int8Decoder`
rounds to bf16's 8.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.utils import logging

from .int8_tiny_story import Int8Decoder, Int8Linear, Int8Weights, Norm
from .kernel_tiny_story import SOURCE

# -ffast-math would be too much: it lets the compiler choose the order of sums, and so a row's bits by where it stands.
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"]
LANES = 16  # weights the kernel reads at once: a matrix's input is padded to whole numbers of them

logger = logging.get_logger(__name__)


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


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None, with a warning that says why, where it cannot be had."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None
    error = ""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        source.write_text(SOURCE, encoding="utf-8")
        for threads in (["-fopenmp"], []):  # not every compiler has OpenMP
            try:
                command = [compiler, *FLAGS, *threads, str(source), "-o", str(built), "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                return ctypes.CDLL(str(built))
            except subprocess.CalledProcessError as problem:
                error = problem.stderr
            except OSError as problem:
                error = str(problem)
    logger.warning("the decoder's C kernel could not be built, so PyTorch decodes, more slowly: %s", error.strip())
    return None


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
        weight = pad(matrix.weight, (0, -inputs % LANES))
        scale, bias = (None if x is None else x.float() for x in (matrix.scale, matrix.bias))
        limit = min(2**15 - 1, (2**31 - 1) // (127 * inputs))  # so large that no sum leaves 32 bits
        return _Linear(*map(self._pointer, (weight, scale, bias)), weight.shape[1], outputs, limit)


class NativeDecoder(Int8Decoder):
    """Rows and caches as in `Int8Decoder`."""

    weights: NativeWeights

    def extend(self, rows: Sequence[list[int]], last_only: bool = False) -> torch.Tensor:
        kernel, config = library(), self.config
        assert kernel is not None
        count, time = len(rows), len(rows[0])
        if max(self.lengths) + time > config.max_position_embeddings:
            raise IndexError(f"more than {config.max_position_embeddings} tokens, the model's context")
        self._reserve(time)
        logits = torch.empty(count, 1 if last_only else time, config.vocab_size)
        failed = kernel.forward(
            ctypes.byref(self.weights.struct),
            (c_void_p * len(self.caches))(*(cache.data_ptr() for cache in self.caches)),
            self.caches[0].shape[2],
            (c_int32 * (count * time))(*(token for row in rows for token in row)),
            (c_int32 * count)(*self.lengths),
            count,
            time,
            last_only,
            torch.get_num_threads(),
            c_void_p(logits.data_ptr()),
        )
        if failed:
            raise MemoryError(f"no memory to decode {count * time} tokens at once")
        self.lengths = [length + time for length in self.lengths]
        return logits
