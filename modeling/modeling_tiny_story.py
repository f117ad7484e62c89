"""The Tiny Story decoder: one set of classes, two recipes (see `configuration_tiny_story.py`).

classic (the defaults)                        modern (the shape of Qwen3)
  sinusoids added to the embedding              rotary positions on queries and keys
  x = norm1(x + attention(x))                   x = x + attention(norm1(x))
  x = norm2(x + feed_forward(x))                x = x + feed_forward(norm2(x)); a last norm
  LayerNorm, ReLU, biases, untied output        RMSNorm, QK-norm, SwiGLU, no biases, tied output

Classes stand in the order data flows through them.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import relu, silu
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_tiny_story import TinyStoryConfig
from .pipeline_tiny_story import StoryGenerationPipeline


def inverse_frequencies(dim: int, base: float, device: torch.device | None = None) -> torch.Tensor:
    """1 / base^(2i / dim) for i below dim / 2, in radians per position: (dim / 2,), fp32."""
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)


class PositionalEncoding(nn.Module):
    """Fixed sinusoids: sin in the even channels, cos in the odd ones (Vaswani et al. 2017, section 3.5). Worked out
    in each forward pass: there is no buffer that loading, casting or moving the model could spoil."""

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """hidden_states (batch, time, hidden) + the sinusoids of position_ids (batch, time)."""
        frequencies = inverse_frequencies(hidden_states.shape[-1], base=10000.0, device=position_ids.device)
        angles = position_ids[..., None].float() * frequencies  # (batch, time, hidden / 2)
        sinusoids = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (batch, time, hidden)
        return hidden_states + sinusoids.to(hidden_states.dtype)


class RotaryEmbedding(nn.Module):
    """Cosines and sines for rotary positions (Su et al. 2021, RoFormer, section 3.2; half-rotation layout), scaled as
    `rope_parameters` says. The base class finds the buffers by their names and rebuilds them after loading."""

    inv_freq: torch.Tensor

    def __init__(self, config: TinyStoryConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = compute(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)  # (head_dim / 2,), radians per position
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: TinyStoryConfig, **kwargs: object) -> tuple[torch.Tensor, float]:
        return inverse_frequencies(config.head_dim, config.rope_parameters["rope_theta"]), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each (batch, time, head_dim), in the dtype of hidden_states."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=position_ids.device, dtype=torch.float32)
        angles = torch.cat((angles, angles), dim=-1)  # (batch, time, head_dim)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (i, i + head_dim / 2) of heads (batch, heads, time, head_dim) by its position's angle."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (batch, 1, time, head_dim)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, computed in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden_states.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": RMSNorm}


def eager_attention_forward(
    module: "MultiHeadAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention spelt out; the one implementation that returns its weights.

    Args:
        query: (batch, heads, time, head_dim); key, value: (batch, kv_heads, context, head_dim).
        attention_mask: added to the scores, (batch, 1, time, context).

    Returns:
        output (batch, time, heads, head_dim) and weights (batch, heads, time, context).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, context, head_dim)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (batch, heads, time, context)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Causal self-attention through transformers' interface: eager, SDPA, flex, flash or a registered one."""

    def __init__(self, config: TinyStoryConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True

        query_width = config.num_attention_heads * self.head_dim
        key_value_width = config.num_key_value_heads * self.head_dim
        self.W_q = nn.Linear(config.hidden_size, query_width, bias=config.use_bias)
        self.W_k = nn.Linear(config.hidden_size, key_value_width, bias=config.use_bias)
        self.W_v = nn.Linear(config.hidden_size, key_value_width, bias=config.use_bias)
        self.W_o = nn.Linear(query_width, config.hidden_size, bias=config.use_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states (batch, time, hidden) -> the same shape, and the attention weights if there are any."""
        input_shape = hidden_states.shape[:-1]
        heads_shape = (*input_shape, -1, self.head_dim)
        query = self.W_q(hidden_states).view(heads_shape)  # (batch, time, heads, head_dim)
        key = self.W_k(hidden_states).view(heads_shape)
        value = self.W_v(hidden_states).view(heads_shape)
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (batch, heads, time, head_dim)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )  # (batch, time, heads, head_dim)
        return self.W_o(output.reshape(*input_shape, -1)), weights


class PositionWiseFeedForward(nn.Module):
    """fc2(relu(fc1(x))), or SwiGLU: fc2(silu(gate(x)) * fc1(x)) (Shazeer 2020, GLU Variants, section 2)."""

    def __init__(self, config: TinyStoryConfig):
        super().__init__()
        if config.hidden_act == "swiglu":
            self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.gated = config.hidden_act == "swiglu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(hidden_states)
        return self.fc2(silu(self.gate(hidden_states)) * hidden if self.gated else relu(hidden))


class DecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each in a residual sum, normalised before ("pre") or after ("post") the sum."""

    def __init__(self, config: TinyStoryConfig, layer_idx: int):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.pre_norm = config.norm_position == "pre"
        self.self_attn = MultiHeadAttention(config, layer_idx)
        self.feed_forward = PositionWiseFeedForward(config)
        self.norm1 = norm(config.hidden_size, eps=config.norm_eps)
        self.norm2 = norm(config.hidden_size, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """hidden_states (batch, time, hidden) -> the same shape; kwargs go to the attention."""
        if self.pre_norm:
            attended, _ = self.self_attn(self.norm1(hidden_states), **kwargs)
            hidden_states = hidden_states + self.dropout(attended)
            return hidden_states + self.dropout(self.feed_forward(self.norm2(hidden_states)))
        attended, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = self.norm1(hidden_states + self.dropout(attended))
        return self.norm2(hidden_states + self.dropout(self.feed_forward(hidden_states)))


class TinyStoryPreTrainedModel(PreTrainedModel):
    """What transformers must know of every model here, and how its weights begin."""

    config_class = TinyStoryConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": MultiHeadAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear: normal(0, initializer_range), bias 0. Embedding: normal(0, embedding_initializer_range).
        Norms: weight 1, bias 0."""
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.embedding_initializer_range)


class TinyStoryModel(TinyStoryPreTrainedModel):
    """Token ids to hidden states."""

    def __init__(self, config: TinyStoryConfig):
        super().__init__(config)
        self.decoder_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_type == "rope":
            self.rotary_emb = RotaryEmbedding(config)
        else:
            self.positional_encoding = PositionalEncoding()
        self.decoder_layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        if config.norm_position == "pre":
            self.norm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding, (vocab, hidden)."""
        return self.decoder_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another embedding in its place."""
        self.decoder_embedding = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (batch, time); or inputs_embeds: (batch, time, hidden), before positions are added.
            attention_mask: (batch, context), 1 for tokens and 0 for padding on the left; or a ready 4-D mask.
            position_ids: (batch, time). Positions that do not go up by one part packed documents, which then do not
                see one another (only without attention_mask and cache).
            past_key_values: the cache; made here if use_cache is set and none is given.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.decoder_embedding(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length
            position_ids = position_ids.unsqueeze(0)  # (1, time)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )

        hidden_states, position_embeddings = inputs_embeds, None  # (batch, time, hidden)
        if self.config.position_type == "rope":
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        else:
            hidden_states = self.positional_encoding(hidden_states, position_ids)
        hidden_states = self.dropout(hidden_states)
        for layer in self.decoder_layers[: self.config.num_hidden_layers]:  # fewer while `generate` exits early
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        if self.config.norm_position == "pre":
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None
        )


def keep_positions(hidden_states: torch.Tensor, kept: int | torch.Tensor) -> torch.Tensor:
    """The positions of hidden_states (batch, time, hidden) that need logits: the last `kept`, 0 meaning all; those in a
    tensor (kept,), or for each row (batch, kept); or those that are True in (batch, time), flattened."""
    if isinstance(kept, int):
        return hidden_states[:, slice(-kept, None)]
    if kept.ndim == 1:
        return hidden_states[:, kept]
    if kept.dtype == torch.bool:
        return hidden_states[kept]
    return hidden_states.gather(1, kept[..., None].expand(-1, -1, hidden_states.shape[-1]))


class TinyStoryForCausalLM(TinyStoryPreTrainedModel, GenerationMixin):
    """The decoder with its output layer: next-token logits, loss, and `generate`."""

    _tied_weights_keys = {"fc.weight": "model.decoder_embedding.weight"}
    _tp_plan = {"fc": "colwise_gather_output"}

    def __init__(self, config: TinyStoryConfig):
        super().__init__(config)
        self.model = TinyStoryModel(config)
        self.fc = nn.Linear(config.hidden_size, config.vocab_size, bias=config.use_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The layer that gives the logits."""
        return self.fc

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Put another layer in its place."""
        self.fc = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: (batch, time), the input tokens themselves, -100 where not scored; shifted here.
            logits_to_keep: which positions get logits, see `keep_positions`; 0 is all.
            kwargs: to the attention, and to the loss (`num_items_in_batch`). The rest is as in `TinyStoryModel`.

        Returns:
            logits (batch, time kept, vocab), and the mean cross-entropy in nats if labels are given.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.fc(keep_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


TinyStoryConfig.register_for_auto_class()
TinyStoryModel.register_for_auto_class("AutoModel")
TinyStoryForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Trainer's label smoothing shifts the labels of those classes only that it finds here, and says nothing of others.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[TinyStoryConfig.model_type] = TinyStoryForCausalLM.__name__

# The pipeline is here so that a model's code brings its task, and every saved copy of the model the pipeline's files.
__all__ = ["StoryGenerationPipeline", "TinyStoryForCausalLM", "TinyStoryModel", "TinyStoryPreTrainedModel"]
