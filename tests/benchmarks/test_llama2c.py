"""llama2.c's files: what is written is read back as the same model; a tokenizer's scores decide what is merged."""

import struct

import pytest
import torch

from benchmarks import llama2c
from benchmarks.peers import llama

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def test_a_checkpoint_comes_back_as_the_same_model(tmp_path):
    torch.manual_seed(0)
    model = llama(SHAPE, 300).eval()
    model.config.rms_norm_eps = 1e-5
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
    llama2c.write_model(model, tmp_path / "model.bin")
    read = llama2c.read_model(tmp_path / "model.bin")
    ids = torch.randint(3, 300, (2, 20))
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
    (tmp_path / "cut.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"no llama2\.c checkpoint"):
        llama2c.read_model(tmp_path / "cut.bin")


def test_int8_is_the_weights_in_groups_of_64(tmp_path):
    torch.manual_seed(0)
    model = llama(SHAPE, 300).eval()
    llama2c.write_model(model, tmp_path / "int8.bin", int8=True)
    data = (tmp_path / "int8.bin").read_bytes()
    assert struct.unpack("<Ii7i?i", data[:41]) == (llama2c.Q80_MAGIC, 2, 64, 128, 2, 4, 2, 300, 1024, True, 64)
    at = 256 + 4 * 64 * (2 * 2 + 1)  # after the norms: the embedding
    values = torch.frombuffer(bytearray(data[at : at + 300 * 64]), dtype=torch.int8).view(300, 64)
    scales = torch.frombuffer(bytearray(data[at + 300 * 64 : at + 300 * 64 + 4 * 300]), dtype=torch.float32)
    weight = model.model.embed_tokens.weight.detach()
    assert torch.allclose(values * scales[:, None], weight, atol=float(weight.abs().max()) / 250)
    with pytest.raises(ValueError, match="no multiple of 64"):
        llama2c.write_model(llama(SHAPE | {"hidden_size": 32, "head_dim": 8}, 300), tmp_path / "x.bin", int8=True)


def test_the_higher_score_is_merged_first(tmp_path):
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
    pieces += [(b" ", -1.0), (b"a", -1.0), (b"b", -1.0), (b"c", -1.0), (b"bc", -2.0), (b"ab", -3.0)]
    with (tmp_path / "tokenizer.bin").open("wb") as file:
        file.write(struct.pack("I", 6))
        file.writelines(struct.pack("fI", score, len(piece)) + piece for piece, score in pieces)
    tokenizer = llama2c.read_tokenizer(tmp_path / "tokenizer.bin")
    assert tokenizer("abc", add_special_tokens=False).tokens() == ["▁", "a", "bc"]
    ids = tokenizer("abc é", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "abc é"
    assert tokenizer.bos_token == tokenizer.eos_token == "<s>"
