"""The decoder in int8 on a processor, one operation of PyTorch after another.

Weights are kept as int8 with a scale for each output channel. A matrix reads and writes bf16; everything between the
matrices, the cache too, is fp32. The kernels used treat each row on its own, in the same order whatever stands beside
it, so a row gets the same bits alone and in a batch; padding to whole blocks keeps it so.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch.nn.functional import layer_norm, relu, silu
from transformers import PreTrainedConfig, PreTrainedModel

BLOCK = 64  # attention runs over a whole number of blocks of so many tokens
FP32: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are: the C writes where it is told


def unit_norm(x: torch.Tensor) -> torch.Tensor:
    """x / its length over the last dimension: an RMS norm up to the square root of its width. The norm's epsilon is
    left out: it stands beside squares a million times larger."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=1e-12)


class Int8Linear:
    """y = x W^T + b with int8 weights (out, in) and a bf16 scale for each output."""

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor | None]):
        weight = torch.cat([w.detach().float() for w in weights])  # (out, in)
        self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()  # (out,)
        # Rounded to the scale as it is stored: what the scale's own rounding loses is not lost twice.
        self.weight = (weight / self.scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.bias = None if biases[0] is None else torch.cat([b.detach().float() for b in biases]).bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, in) in fp32 or bf16 -> (rows, out) in bf16."""
        y = torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale)
        return y if self.bias is None else y + self.bias


def whole_blocks(tokens: int) -> int:
    """Tokens rounded up to whole blocks."""
    return -(-tokens // BLOCK) * BLOCK


Norm = tuple[torch.Tensor, torch.Tensor | None]  # gain and bias


class Int8Layer:
    """The packed weights of a `DecoderLayer`; matrices that read the same input are one."""

    def __init__(self, layer: Any, config: PreTrainedConfig):
        attention, feed_forward = layer.self_attn, layer.feed_forward
        # The scaling of the scores goes into the queries' norm, or else into their weights.
        scale_weights = 1.0 if config.qk_norm else attention.scaling
        query, key, value = attention.W_q, attention.W_k, attention.W_v
        query_bias = None if query.bias is None else query.bias * scale_weights
        self.qkv = Int8Linear(
            [query.weight * scale_weights, key.weight, value.weight], [query_bias, key.bias, value.bias]
        )
        self.out = Int8Linear([attention.W_o.weight], [attention.W_o.bias])
        inner = [feed_forward.gate, feed_forward.fc1] if feed_forward.gated else [feed_forward.fc1]
        self.inner = Int8Linear([x.weight for x in inner], [x.bias for x in inner])
        self.outer = Int8Linear([feed_forward.fc2.weight], [feed_forward.fc2.bias])
        self.norm1, self.norm2 = pack_norm(layer.norm1), pack_norm(layer.norm2)
        if config.qk_norm:
            gains = [attention.q_norm.weight * attention.scaling] * config.num_attention_heads
            gains += [attention.k_norm.weight] * config.num_key_value_heads
            # Both norms in one: (heads + kv_heads, head_dim).
            self.qk_gain = torch.stack([gain.detach().float() for gain in gains]) * config.head_dim**0.5


def pack_norm(norm: Any) -> Norm:
    """A norm's gain, scaled for `unit_norm` where it has no bias, and its bias."""
    gain, bias = norm.weight.detach().float(), getattr(norm, "bias", None)
    if bias is None:
        return gain * len(gain) ** 0.5, None  # for `unit_norm`
    return gain.clone(), bias.detach().float().clone()


class Int8Weights:
    """A model's weights packed for `Int8Decoder`, and the tables of its positions."""

    def __init__(self, model: PreTrainedModel):
        config = model.config
        # A plain copy: every read of a transformers config runs Python code, 5 % of a step in all.
        self.config = SimpleNamespace(**config.to_dict())
        decoder: Any = model.model
        self.embedding = decoder.decoder_embedding.weight.detach().float().clone()
        self.layers = [Int8Layer(layer, config) for layer in decoder.decoder_layers]
        self.norm = pack_norm(decoder.norm) if config.norm_position == "pre" else None
        self.head = Int8Linear([model.fc.weight], [model.fc.bias])

        positions = torch.arange(config.max_position_embeddings, device="cpu")[None]
        if config.position_type == "rope":
            cos, sin = decoder.rotary_emb(self.embedding, positions)
            self.cos = cos[0, :, None].float()  # (positions, 1, head_dim)
            half = config.head_dim // 2  # the sign of the rotation goes into the table
            self.sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[0, :, None].float()
        else:
            empty = torch.zeros(1, config.max_position_embeddings, config.hidden_size, **FP32)
            self.sinusoids = decoder.positional_encoding(empty, positions)[0]  # (positions, hidden)


class Int8Decoder:
    """Rows of different lengths, each from the left, in caches (rows, kv_heads, capacity, head_dim)."""

    def __init__(self, weights: Int8Weights):
        self.weights = weights
        self.config = weights.config
        self.lengths: list[int] = []
        self.caches: list[torch.Tensor] = []  # keys and values of the first layer, of the second, ...

    def fresh(self) -> Self:
        """A decoder of the same weights, without rows."""
        return type(self)(self.weights)

    def start(self, prompts: Sequence[list[int]], room: int = 0) -> torch.Tensor:
        """Read the prompts; logits of the token after each, (rows, vocab)."""
        parts, logits = [], []
        for prompt in prompts:  # one at a time: bit for bit what each gets alone
            part = type(self)(self.weights)
            part.lengths, part.caches = [0], part._empty(1, len(prompt))
            logits.append(part.extend([prompt], last_only=True)[:, -1])
            parts.append(part)
        self.lengths = [part.lengths[0] for part in parts]
        self.caches = self._empty(len(parts), max(self.lengths) + room)
        for row, part in enumerate(parts):
            self._take(row, part, 0)
        return torch.cat(logits)

    def step(self, tokens: Sequence[int | None]) -> torch.Tensor:
        """Read a token for each row, none where it is None; logits of the rows that read, (rows, vocab)."""
        lengths, awake = self.lengths, [row for row, token in enumerate(tokens) if token is not None]
        logits = self.extend([[token or 0] for token in tokens])[awake, -1]
        # A resting row's token is forgotten: the next one takes its place in the cache.
        self.lengths = [length + (token is not None) for length, token in zip(lengths, tokens, strict=True)]
        return logits

    def extend(self, rows: Sequence[list[int]], last_only: bool = False) -> torch.Tensor:
        """Read as many tokens for every row; logits of all of them, (rows, time, vocab), or of the last."""
        ids = torch.tensor(rows, device="cpu")  # (rows, time)
        count, time = ids.shape
        self._reserve(time)
        lengths = torch.tensor(self.lengths, device="cpu")
        positions = lengths[:, None] + torch.arange(time, device="cpu")  # (rows, time)
        unseen = torch.arange(whole_blocks(max(self.lengths) + time), device="cpu") > positions[..., None]
        mask = torch.zeros(unseen.shape, **FP32).masked_fill_(unseen, -torch.inf)[:, None]  # (rows, 1, time, context)
        hidden = self.weights.embedding[ids]  # (rows, time, hidden)
        rotary = self.config.position_type == "rope"
        rotation = (self.weights.cos[positions], self.weights.sin[positions]) if rotary else None
        if not rotary:
            hidden = hidden + self.weights.sinusoids[positions]
        for index in range(len(self.weights.layers)):
            hidden = self._layer(index, hidden, positions, rotation, mask)
        self.lengths = [length + time for length in self.lengths]
        if last_only:
            hidden = hidden[:, -1:]
        if self.weights.norm is not None:
            hidden = self._norm(hidden, self.weights.norm)
        return self.weights.head(hidden.flatten(0, 1)).float().unflatten(0, (count, -1))

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        # No row is read after it was written over.
        in_place = all(row >= place or rows[row] == row for place, row in enumerate(rows))
        for index, cache in enumerate(self.caches):
            if in_place:
                for place, row in enumerate(rows):
                    if row != place:
                        cache[place] = cache[row]
            self.caches[index] = cache[: len(rows)] if in_place else cache[rows]

    def fork(self, rows: list[int], cut: list[int] | None = None, room: int = 0) -> Self:
        """Another decoder that has read what these rows have, each less its last `cut` tokens."""
        fork = type(self)(self.weights)
        fork.lengths = [self.lengths[row] - tokens for row, tokens in zip(rows, cut or [0] * len(rows), strict=True)]
        fork.caches = self._empty(len(rows), max(fork.lengths) + room)
        for place, row in enumerate(rows):
            fork._take(place, self, row)
        return fork

    def _take(self, place: int, other: "Int8Decoder", row: int) -> None:
        """Copy another decoder's row, as far as there is room, straight from cache to cache."""
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            width = min(mine.shape[2], theirs.shape[2])
            mine[place, :, :width] = theirs[row, :, :width]

    def _empty(self, rows: int, tokens: int) -> list[torch.Tensor]:
        """Caches for so many tokens; zeros, because what is not written yet is weighed with zero."""
        shape = (rows, self.config.num_key_value_heads, whole_blocks(tokens), self.config.head_dim)
        return [torch.zeros(shape, **FP32) for _ in range(2 * len(self.weights.layers))]

    def _own(self) -> int:
        """Tokens of the longest row in its own cache."""
        return max(self.lengths)

    def _reserve(self, more: int) -> None:
        needed = self._own() + more
        if self.caches[0].shape[2] < needed:
            old, self.caches = self.caches, self._empty(len(self.lengths), needed + BLOCK)
            for mine, theirs in zip(self.caches, old, strict=True):
                mine[:, :, : theirs.shape[2]] = theirs

    def _norm(self, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
        if self.config.norm_type == "layernorm":
            return layer_norm(hidden, hidden.shape[-1:], *norm, self.config.norm_eps)
        return unit_norm(hidden) * norm[0]

    def _layer(
        self,
        index: int,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """hidden (rows, time, hidden) in fp32 -> the same; as `DecoderLayer` in modeling_tiny_story.py."""
        config, layer = self.config, self.weights.layers[index]
        pre_norm = config.norm_position == "pre"
        rows, time, width = hidden.shape
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

        inputs = self._norm(hidden, layer.norm1) if pre_norm else hidden
        qkv = layer.qkv(inputs.view(-1, width)).float().view(rows, time, heads + 2 * kv_heads, config.head_dim)
        qk, value = qkv[:, :, : heads + kv_heads], qkv[:, :, heads + kv_heads :]
        if config.qk_norm:
            qk = unit_norm(qk) * layer.qk_gain
        if rotation is not None:
            qk = torch.addcmul(qk * rotation[0], qk.roll(config.head_dim // 2, -1), rotation[1])
        keys, values = (cache[:, :, : mask.shape[-1]] for cache in self.caches[2 * index : 2 * index + 2])
        if rows == 1:
            at = slice(self.lengths[0], self.lengths[0] + time)
            keys[:, :, at], values[:, :, at] = qk[:, :, heads:].transpose(1, 2), value.transpose(1, 2)
        else:
            row = torch.arange(rows, device="cpu")[:, None]
            keys[row, :, positions], values[row, :, positions] = qk[:, :, heads:], value
        if heads != kv_heads:
            keys, values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
        scores = qk[:, :, :heads].transpose(1, 2) @ keys.transpose(2, 3)  # (rows, heads, time, context)
        mixed = scores.add_(mask).softmax(-1) @ values  # (rows, heads, time, head_dim)
        hidden = hidden + layer.out(mixed.transpose(1, 2).reshape(rows * time, -1)).view(rows, time, width)
        if not pre_norm:
            hidden = self._norm(hidden, layer.norm1)

        inputs = self._norm(hidden, layer.norm2) if pre_norm else hidden
        inner = layer.inner(inputs.view(-1, width))
        if config.hidden_act == "swiglu":
            gate, inner = inner.chunk(2, dim=-1)
            inner = silu(gate) * inner
        else:
            inner = relu(inner)
        hidden = hidden + layer.outer(inner).view(rows, time, width)
        return hidden if pre_norm else self._norm(hidden, layer.norm2)
