"""The mean of several checkpoints' weights, in Hub layout: a model soup (Wortsman et al. 2022).

    python -m training.average modeling runs/modern/model --to DIR

Two ends of one training history, each with its learning rate taken to zero, often score better together than either
does alone. Score the result before you keep it: `python -m training.evaluate bits --model DIR`.
"""

import argparse
import re
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from training.checkpoint import load_pretrained, save_released
from training.cli import Parser, one_line_errors, refused

# What of a configuration says nothing about how weights are read.
FREE_SETTINGS = r"dropout|initializer|_token_id|use_cache|dtype|version|_name_or_path|architectures|auto_map|pipelines"


@torch.no_grad()
def average(models: list[PreTrainedModel]) -> PreTrainedModel:
    """The first model with the mean of all models' weights, in fp32.

    Raises:
        ValueError: the models differ in shape, or in a setting that weights are read by; the message names it.
    """
    states = [model.float().state_dict() for model in models]
    for state in states[1:]:
        for name in sorted(states[0].keys() | state.keys()):
            shapes = [tuple(s[name].shape) if name in s else None for s in (states[0], state)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{name} is {shapes[0]} in the first model and {shapes[1]} in another")
    settings = [model.config.to_dict() for model in models]
    for others in settings[1:]:
        for name in sorted(settings[0].keys() | others.keys()):
            first, other = settings[0].get(name), others.get(name)
            if first != other and not re.search(FREE_SETTINGS, name):
                raise ValueError(f"{name} is {first!r} in the first model and {other!r} in another")
    means = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    models[0].load_state_dict(means)
    return models[0]


def refuse_parts(names: list[str]) -> None:
    """
    Raises:
        ValueError: one of them is no whole model. transformers would load an adapter, but save it without its model.
    """
    for name in names:
        with refused(f"model {name}"):
            is_adapter = find_adapter_config_file(name) is not None
        if is_adapter:
            raise ValueError(f"{name} holds an adapter, no whole model; merge it into its model first")
        if Path(name).is_dir() and not (Path(name) / "config.json").exists():
            raise ValueError(f"{name} holds no model: it has no config.json")


@one_line_errors
def main() -> None:
    """Average checkpoints by command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders or Hub names, two or more")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new or empty folder")
    arguments = parser.parse_args()
    if len(arguments.models) < 2:
        parser.error(f"two models or more are needed, got {len(arguments.models)}")
    if arguments.to.exists() and any(arguments.to.iterdir()):
        parser.error(f"{arguments.to} is not empty")
    refuse_parts(arguments.models)
    loaded = [load_pretrained(name) for name in arguments.models]
    for name, (_, tokenizer) in zip(arguments.models, loaded, strict=True):
        if tokenizer.get_vocab() != loaded[0][1].get_vocab():  # as many tokens are not the same
            raise ValueError(f"{name} has another tokenizer than {arguments.models[0]}")
    model = average([model for model, _ in loaded])
    save_released(model, loaded[0][1], arguments.to)
    print(f"mean of {len(loaded)} models: {arguments.to}")


if __name__ == "__main__":
    main()
