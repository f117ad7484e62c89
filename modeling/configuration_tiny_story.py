"""Configuration of the Tiny Story models. `TinyStoryConfig()` with no arguments is the classic model."""

import copy
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

# What config.json says of the code beside it.
CODE = {
    "auto_map": {
        "AutoConfig": "configuration_tiny_story.TinyStoryConfig",
        "AutoModel": "modeling_tiny_story.TinyStoryModel",
        "AutoModelForCausalLM": "modeling_tiny_story.TinyStoryForCausalLM",
    },
    "custom_pipelines": {
        "story-generation": {
            "impl": "pipeline_tiny_story.StoryGenerationPipeline",
            "pt": ["AutoModelForCausalLM"],
            "type": "text",
        }
    },
}


@strict
class TinyStoryConfig(PreTrainedConfig):
    """One decoder, two recipes.

    The defaults are the *classic* recipe: post-norm LayerNorm, sinusoidal positions, a ReLU feed-forward as narrow as
    the model, biases everywhere and an untied output layer (14,592,904 parameters). The *modern* recipe has the shape
    of Qwen3: pre-norm RMSNorm, rotary positions, QK-norm, SwiGLU, no biases, tied embeddings.

    Args:
        vocab_size: entries of the tokenizer, control tokens included.
        hidden_size: width of the residual stream.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: query heads per layer.
        num_key_value_heads: key/value heads per layer; None means one for every query head (no grouping).
        head_dim: width of a head; None means hidden_size / num_attention_heads.
        intermediate_size: width inside the feed-forward block.
        hidden_act: "relu" for fc2(relu(fc1(x))), "swiglu" for fc2(silu(gate(x)) * fc1(x)).
        norm_type: "layernorm" or "rmsnorm".
        norm_position: "post" normalises each residual sum; "pre" normalises each block's input, and the last output.
        norm_eps: epsilon of the norms.
        qk_norm: RMSNorm over head_dim on queries and keys, before the rotary positions.
        position_type: "sinusoidal" adds fixed sines and cosines to the embedding; "rope" rotates queries and keys.
        use_bias: biases in the linear layers.
        dropout: probability after the embedding and after each block, in training.
        max_position_embeddings: longest context in tokens the model is made for. Positions are computed, not looked up,
            so a longer context runs, but nothing was learnt about it; story decoding stays within.
        initializer_range: standard deviation of the initial linear weights.
        embedding_initializer_range: standard deviation of the initial token embedding.
        tie_word_embeddings: use the token embedding as output layer.
        control_prefix: the model was trained with control prefixes (`control_tiny_story.py`), so stories are planned.
        rope_parameters: `rope_theta` and `rope_type` when position_type is "rope".

    Raises:
        StrictDataclassFieldValidationError: a field has the wrong type.
        StrictDataclassClassValidationError: the fields do not fit together; the message names them.
    """

    model_type = "tiny_story"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "decoder_layers.*.self_attn.W_q": "colwise",
        "decoder_layers.*.self_attn.W_k": "colwise",
        "decoder_layers.*.self_attn.W_v": "colwise",
        "decoder_layers.*.self_attn.W_o": "rowwise",
        "decoder_layers.*.feed_forward.gate": "colwise",
        "decoder_layers.*.feed_forward.fc1": "colwise",
        "decoder_layers.*.feed_forward.fc2": "rowwise",
    }

    vocab_size: int = 5000
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 512
    hidden_act: Literal["relu", "swiglu"] = "relu"
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    position_type: Literal["sinusoidal", "rope"] = "sinusoidal"
    use_bias: bool = True
    dropout: float | int = 0.1
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    embedding_initializer_range: float = 1.0
    tie_word_embeddings: bool = False
    control_prefix: bool = False
    rope_parameters: RopeParameters | dict | None = None
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.hidden_act != "swiglu":  # a plan must name existing layers only
            self.base_model_tp_plan = {k: v for k, v in self.base_model_tp_plan.items() if not k.endswith(".gate")}
        for name, files in CODE.items():  # a model made from scratch is saved with its code, and found by it
            kwargs.setdefault(name, copy.deepcopy(files))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Called by `strict` after the types are checked: the combinations that cannot work, by field name."""
        for name in (
            "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
            "max_position_embeddings",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must not be negative, got {self.num_hidden_layers}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim * self.num_attention_heads != self.hidden_size and not (
            self.position_type == "rope" and self.norm_position == "pre"
        ):
            raise ValueError(
                f"head_dim ({self.head_dim}) * num_attention_heads ({self.num_attention_heads}) must equal "
                f"hidden_size ({self.hidden_size})"
            )
        if self.position_type == "rope" and self.head_dim % 2:
            raise ValueError(f'head_dim must be even when position_type is "rope", got {self.head_dim}')
        if self.position_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f'hidden_size must be even when position_type is "sinusoidal", got {self.hidden_size}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.tie_word_embeddings and self.use_bias:
            raise ValueError("tie_word_embeddings=True needs use_bias=False: a tied output layer has no bias")
        for name in ("pad_token_id", "bos_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise ValueError(f"{name} must lie in the vocabulary (0 to {self.vocab_size - 1}), got {token_id}")


__all__ = ["TinyStoryConfig"]
