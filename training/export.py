"""Write a model in a form that other engines run without this project's code.

python -m training.export --to qwen3 DIR [--model modeling]     a stock Qwen3ForCausalLM checkpoint (modern recipe)
python -m training.export --to gguf DIR [--model modeling]      a GGUF file for llama.cpp, Ollama, ... (modern recipe)
python -m training.export --to onnx DIR [--model modeling]      ONNX graphs with a key/value cache (either recipe)
"""

import argparse
import copy
import json
import re
from pathlib import Path

import transformers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.checkpoint import load_storyteller, whole_or_nothing
from training.cli import Parser, one_line_errors

# What of the configuration must hold for a model to have the shape of Qwen3.
QWEN3_SHAPE = {
    "norm_type": "rmsnorm", "norm_position": "pre", "position_type": "rope", "hidden_act": "swiglu", "qk_norm": True,
    "use_bias": False,
}  # fmt: skip
QWEN3_NAMES = (
    (r"decoder_embedding\.", "embed_tokens."),
    (r"decoder_layers\.", "layers."),
    (r"W_([qkvo])\.", r"\1_proj."),
    (r"feed_forward\.gate\.", "mlp.gate_proj."),
    (r"feed_forward\.fc1\.", "mlp.up_proj."),
    (r"feed_forward\.fc2\.", "mlp.down_proj."),
    (r"norm1\.", "input_layernorm."),
    (r"norm2\.", "post_attention_layernorm."),
    (r"^fc\.", "lm_head."),
)
GGUF_NAMES = (
    (r"^model\.", ""),
    (r"embed_tokens\.", "token_embd."),
    (r"^norm\.", "output_norm."),
    (r"layers\.", "blk."),
    (r"self_attn\.([qkv])_(proj|norm)\.", lambda found: f"attn_{found[1]}{'_norm' * (found[2] == 'norm')}."),
    (r"self_attn\.o_proj\.", "attn_output."),
    (r"mlp\.(gate|up|down)_proj\.", r"ffn_\1."),
    (r"input_layernorm\.", "attn_norm."),
    (r"post_attention_layernorm\.", "ffn_norm."),
    (r"lm_head\.", "output."),
)


def to_qwen3(model: PreTrainedModel) -> Qwen3ForCausalLM:
    """The same weights under Qwen3's names; the logits are equal to the bit where the same kernels run.

    Raises:
        ValueError: the configuration is not Qwen3's shape; the message says which field differs.
    """
    config = model.config
    for name, needed in QWEN3_SHAPE.items():
        if getattr(config, name) != needed:
            value = getattr(config, name)
            raise ValueError(f"only the modern recipe has the shape of Qwen3: {name} is {value!r}, must be {needed!r}")
    twin_config = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=config.tie_word_embeddings,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        dtype=model.dtype,
    )
    weights = {}
    for name, weight in model.state_dict().items():
        for pattern, replacement in QWEN3_NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = weight
    # Not .to(dtype), which would round the rotary frequencies too.
    twin = AutoModelForCausalLM.from_config(twin_config, dtype=model.dtype)
    twin.load_state_dict(weights, strict=True)
    twin.generation_config = GenerationConfig.from_dict(model.generation_config.to_dict())
    return twin.eval()


def export_qwen3(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the twin's checkpoint with tokenizer and generation configuration; it loads without remote code."""
    to_qwen3(model).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def export_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write `model-q8_0.gguf`: Qwen3's architecture, matrices in blocks of 32 weights of 8 bits, the tokenizer with it.
    Needs the extra "gguf".

    Raises:
        ValueError: as `to_qwen3`. ImportError: gguf is not installed.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, TokenType
        from gguf.quants import quantize
    except ImportError as error:
        raise ImportError("GGUF needs the package gguf: pip install gguf") from error

    twin, bpe = to_qwen3(model), json.loads(tokenizer.backend_tokenizer.to_str())
    config, special = twin.config, set(tokenizer.all_special_ids)
    directory.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(directory / "model-q8_0.gguf", "qwen3")
    writer.add_name("Tiny Story Generator")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])

    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("gpt-2")  # split by GPT-2's regular expression
    ids = range(len(tokenizer))
    writer.add_token_list(tokenizer.convert_ids_to_tokens(ids))
    writer.add_token_types([TokenType.CONTROL if index in special else TokenType.NORMAL for index in ids])
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)

    for name, weight in twin.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for pattern, replacement in GGUF_NAMES:
            name = re.sub(pattern, replacement, name)
        array = weight.float().cpu().numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write transformers' own ONNX export, any batch and length: `decode.onnx` takes the cache and new tokens (several,
    or one), `prefill.onnx` starts without a cache. Needs the extra "onnx".

    Raises:
        ImportError: onnx or onnxscript is not installed, or transformers is too old (5.23 is known to do).
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    prompts = tokenizer(["Once upon a time", "One day, a girl"], return_tensors="pt", padding=True)
    exported = OnnxExporter().export_for_generation(
        copy.deepcopy(model).float().eval(), dict(prompts), OnnxConfig(dynamic=True), multi_token_decode=True
    )
    if not hasattr(exported, "save_pretrained"):
        raise ImportError(f"ONNX export needs transformers 5.23 or newer, this is {transformers.__version__}")
    exported.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


FORMS = {"qwen3": export_qwen3, "gguf": export_gguf, "onnx": export_onnx}


@one_line_errors
def main() -> None:
    """Export by command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", choices=sorted(FORMS), required=True)
    parser.add_argument("--model", default="modeling", help="folder or Hub name")
    parser.add_argument("directory", type=Path, metavar="DIR", help="new or empty folder")
    arguments = parser.parse_args()
    if arguments.directory.exists() and any(arguments.directory.iterdir()):
        parser.error(f"{arguments.directory} is not empty")
    model, tokenizer = load_storyteller(arguments.model)
    with whole_or_nothing(arguments.directory):
        FORMS[arguments.to](model, tokenizer, arguments.directory)
    print(f"{arguments.to}: {arguments.directory}")


if __name__ == "__main__":
    main()
