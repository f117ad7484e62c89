"""llama2.c (github.com/karpathy/llama2.c): its small models read by transformers, and its programs' speed.

    python -m benchmarks.llama2c stories260K.bin tok512.bin FOLDER     # then `training.evaluate suite --model FOLDER`

A converted tokenizer ends a story with `<s>`, as the model does: its training data part stories by `<s>`, and no `</s>`
occurs in them.
"""

import argparse
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.cli import Parser, one_line_errors

HEADER = "iiiiiii"  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
Q80_MAGIC, Q80_HEADER_BYTES, GROUP = 0x616B3432, 256, 64
# In the order of the file: a field of `LlamaDecoderLayer`, for all layers, then the next.
FIRST = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
SECOND = ("post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")


def _halves_to_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama2.c turns neighbours (0, 1), (2, 3) of a head's channels, transformers (0, d/2), (1, d/2 + 1)."""
    out, width = weight.shape
    return weight.view(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width)


def _pairs_to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    out, width = weight.shape
    return weight.view(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def read_model(path: Path) -> LlamaForCausalLM:
    """A llama2.c checkpoint of version 0 (fp32), as transformers' Llama.

    Raises:
        ValueError: the file has not the size that its header asks for.
    """
    data = path.read_bytes()
    start = struct.calcsize(HEADER)
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack(HEADER, data[:start])
    tied, vocab = vocab > 0, abs(vocab)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context,
            tie_word_embeddings=tied, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = ["model.embed_tokens"]
    names += [f"model.layers.{i}.{field}" for field in FIRST + SECOND for i in range(layers)] + ["model.norm"]
    values = np.frombuffer(data[start:], dtype="<f4")
    needed = sum(shapes[f"{name}.weight"].numel() for name in names)
    angles = context * (dim // heads)  # cosines and sines, which transformers computes
    if len(values) != needed + angles + (0 if tied else vocab * dim):
        raise ValueError(f"{path} is no llama2.c checkpoint of version 0: {len(values):,} numbers, {needed:,} expected")
    weights, at = {}, 0
    for name in names:
        shape = shapes[f"{name}.weight"]
        weight = torch.tensor(values[at : at + shape.numel()]).view(shape)
        at += shape.numel()
        if name.endswith(("q_proj", "k_proj")):
            weight = _pairs_to_halves(weight, heads if name.endswith("q_proj") else kv_heads)
        weights[f"{name}.weight"] = weight
    weights["lm_head.weight"] = (
        weights["model.embed_tokens.weight"] if tied else torch.tensor(values[at + angles :]).view(vocab, dim)
    )
    model.load_state_dict(weights)
    return model.eval()


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """llama2.c's tokenizer.bin: pieces and scores; of two pieces the one with the higher score is merged first."""
    data, at, pieces = path.read_bytes(), 4, []
    while at < len(data):
        score, length = struct.unpack("<fI", data[at : at + 8])
        pieces.append((data[at + 8 : at + 8 + length].decode("utf-8", "replace").replace(" ", "▁"), score))
        at += 8 + length
    names = ["<unk>", "<s>", "</s>"] + [piece for piece, _ in pieces[3:]]
    vocab = {name: number for number, name in enumerate(names)}
    merges = []
    for name, (_, score) in zip(names, pieces, strict=True):
        if len(name) > 1 and not re.fullmatch(r"<.*>", name):
            cuts = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
            merges += [(score, pair) for pair in cuts if pair[0] in vocab and pair[1] in vocab]
    merges.sort(key=lambda merge: -merge[0])  # stable
    tokenizer = Tokenizer(BPE(vocab, [pair for _, pair in merges], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>", pad_token="<unk>"
    )


def write_model(model: LlamaForCausalLM, path: Path, int8: bool = False) -> None:
    """A Llama with tied embeddings, for `run` (version 0) or, in int8, for `runq` (version 2).

    Raises:
        ValueError: int8, and a matrix's width is no multiple of the group of 64.
    """
    config = model.config
    layers = range(config.num_hidden_layers)

    def weight(layer: int, field: str) -> torch.Tensor:
        tensor = model.get_parameter(f"model.layers.{layer}.{field}.weight").detach()
        if field.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if field.endswith("q_proj") else config.num_key_value_heads
            tensor = _halves_to_pairs(tensor, heads)
        return tensor

    header = struct.pack(
        HEADER, config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads,
        config.num_key_value_heads, config.vocab_size, config.max_position_embeddings,
    )  # fmt: skip
    embedding, norm = model.model.embed_tokens.weight.detach(), model.model.norm.weight.detach()
    with path.open("wb") as file:
        if int8:
            file.write((struct.pack("<Ii", Q80_MAGIC, 2) + header + struct.pack("<?i", True, GROUP)).ljust(256, b"\0"))
            for field in ("input_layernorm", "post_attention_layernorm"):
                file.writelines(_fp32(weight(layer, field)) for layer in layers)
            file.write(_fp32(norm))
            file.write(_q80(embedding))
            for field in FIRST[1:] + SECOND[1:]:
                file.writelines(_q80(weight(layer, field)) for layer in layers)
        else:
            file.write(header + _fp32(embedding))
            for field in FIRST + SECOND:
                file.writelines(_fp32(weight(layer, field)) for layer in layers)
            angles = config.max_position_embeddings * config.hidden_size // config.num_attention_heads
            file.write(_fp32(norm) + bytes(4 * angles))


def _fp32(tensor: torch.Tensor) -> bytes:
    return tensor.float().contiguous().numpy().tobytes()


def _q80(tensor: torch.Tensor) -> bytes:
    """int8 in groups of 64, then the groups' scales."""
    if tensor.shape[-1] % GROUP:
        raise ValueError(f"a width of {tensor.shape[-1]} is no multiple of {GROUP}, which runq groups by")
    groups = tensor.float().reshape(-1, GROUP)
    scales = groups.abs().amax(1, keepdim=True) / 127
    return torch.round(groups / scales).to(torch.int8).numpy().tobytes() + _fp32(scales)


def write_tokenizer(vocab_size: int, path: Path) -> None:
    """Pieces for a model of random weights, whose text nobody reads."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" "]
    pieces += [b"piece%d" % number for number in range(vocab_size - len(pieces))]
    with path.open("wb") as file:
        file.write(struct.pack("I", max(map(len, pieces))))
        file.writelines(struct.pack("fI", 0.0, len(piece)) + piece for piece in pieces)


def tokens_per_second(program: Path, model: Path, tokenizer: Path, tokens: int) -> float:
    """What `run` or `runq` says it reached, greedy.

    Raises:
        RuntimeError: it stopped early, or said nothing.
    """
    command = [str(program), str(model), "-z", str(tokenizer), "-t", "0", "-n", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    found = re.search(r"achieved tok/s: ([\d.]+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip() or 'it said nothing'}")
    return float(found[1])


@one_line_errors
def main() -> None:
    """Convert a checkpoint and its tokenizer to a folder that transformers loads."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint of version 0, stories260K.bin")
    parser.add_argument("tokenizer", type=Path, help="its tokenizer, tok512.bin")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    read_model(arguments.model).save_pretrained(arguments.folder)
    read_tokenizer(arguments.tokenizer).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
