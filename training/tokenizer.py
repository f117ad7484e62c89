"""The tokenizer: byte-level BPE, 5,000 entries, plain `AutoTokenizer` loads it.

    python -m training.tokenizer --dataset train.parquet --validation_dataset validation.parquet --output modeling

The pre-tokenizer is GPT-2's (known by name to other engines), so any text round-trips exactly; `<sos>` is put before
every text, nothing after it. Special tokens are never found inside text: a reader who types "<sos>" gets characters.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling.control_tiny_story import BOS, EOS, PAD, SPECIAL_TOKENS
from training.cli import Parser, one_line_errors, refused
from training.sources import DEFAULT_DATASET, load_stories

VOCAB_SIZE = 5000


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019) on normalised stories.

    Raises:
        ValueError: there is no room for the 256 bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (bytes and special tokens), got {vocab_size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=True,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=1024,
    )


def load_tokenizer(name: str, controls: bool) -> PreTrainedTokenizerFast:
    """A run's tokenizer, from a folder or the Hub.

    Args:
        controls: wishes or closings are to be learnt, whose tokens it must have at their ids.

    Raises:
        ValueError: it cannot be read, or lacks a token that training needs.
    """
    with refused(f"tokenizer {name}"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    for token in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, token) is None:
            raise ValueError(f"tokenizer {name} has no {token}; python -m training.tokenizer makes one that has all")
    first = tokenizer.convert_ids_to_tokens(list(range(min(len(SPECIAL_TOKENS), len(tokenizer)))))
    if controls and first != list(SPECIAL_TOKENS):
        raise ValueError(
            f"tokenizer {name}: wishes_share and closings_share need {', '.join(SPECIAL_TOKENS)} as its first tokens, "
            f"it begins with {', '.join(map(str, first[:5]))}; python -m training.tokenizer makes such a one"
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> None:
    """`save_pretrained`, under the class name that the most versions and engines read."""
    tokenizer.save_pretrained(directory)
    path = Path(directory) / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """UTF-8 bytes per token over whole texts, special tokens not counted."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return sum(len(text.encode()) for text in texts) / sum(map(len, ids))


@dataclass
class TokenizerArguments:
    """What the tokenizer is trained on, and where it goes."""

    # No default: the released tokenizer, which its model cannot do without, is overwritten only where one says so.
    output: str = field(metadata={"help": "folder the tokenizer files go to"})
    dataset: list[str] = field(default_factory=lambda: [DEFAULT_DATASET], metadata={"help": "as in training/train.py"})
    validation_dataset: str | None = field(default=None, metadata={"help": "stories to measure bytes per token on"})
    text_column: str = field(default="text", metadata={"help": "as in training/train.py"})
    story_separator: str | None = field(default=None, metadata={"help": "as in training/train.py"})
    vocab_size: int = field(default=VOCAB_SIZE, metadata={"help": "entries, special tokens included"})


@one_line_errors
def main() -> None:
    """Train a tokenizer by command."""
    (arguments,) = Parser(TokenizerArguments).parse_args_into_dataclasses()
    reading = {"text_column": arguments.text_column, "story_separator": arguments.story_separator}
    stories = load_stories(arguments.dataset, "train", **reading)
    validation = None
    if arguments.validation_dataset:
        validation = list(load_stories([arguments.validation_dataset], "validation", **reading)["text"])
    tokenizer = train_tokenizer((text for batch in stories.iter(1000) for text in batch["text"]), arguments.vocab_size)
    save_tokenizer(tokenizer, arguments.output)
    print(f"{len(tokenizer)} entries from {len(stories)} stories -> {arguments.output}")
    if validation:
        print(f"{bytes_per_token(tokenizer, validation):.3f} bytes per token on {len(validation)} stories")


if __name__ == "__main__":
    main()
