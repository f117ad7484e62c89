"""Whether a model may be told by packed weights, and whether weights packed once are still the model's.

A packed decoder computes what this package's classes compute, from a copy of the weights. People do more with a model:
they add an adapter, a hook, a mask, they quantise it. `why_not_packed` compares the model with what its class builds
from its config; for any difference it names, the model's own forward pass tells. Weights are edited in ways PyTorch
does not count (`.data`, NumPy, an optimiser's kernels), so `packed_weights` sums up all their bytes before each story.
"""

import ctypes
import inspect
import zlib
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .compiler_tiny_story import library
from .int8_tiny_story import Int8Weights
from .threads_tiny_story import threads

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
NO_HOOKS = "transformers.utils.output_capturing"  # output_hidden_states=True leaves hooks that change nothing
CHANGE_NOTHING = {"training", "gradient_checkpointing"}  # attributes of a module

_PLANS: "WeakKeyDictionary[nn.Module, tuple[dict, dict[str, nn.Module]]]" = WeakKeyDictionary()
_PACKED: "WeakKeyDictionary[nn.Module, tuple[tuple, Int8Weights]]" = WeakKeyDictionary()


def why_not_packed(model: nn.Module) -> str | None:
    """What about this model a packed decoder would not know; None if it is just what its config builds."""
    if nn.modules.module._has_any_global_hook():
        return "a global hook is registered for all modules"
    return next(_differences(model), None)


def packed_weights(model: PreTrainedModel, kind: type[Int8Weights]) -> Any:
    """The model's packed weights, packed again after any of its weights or its config has changed."""
    state = (kind, model.config.to_dict(), _state_of_weights(model))
    known = _PACKED.get(model)
    if known is None or known[0] != state:
        with torch.inference_mode():
            known = _PACKED[model] = (state, kind(model))
    return known[1]


def _differences(model: nn.Module) -> Iterator[str]:
    from .modeling_tiny_story import TinyStoryForCausalLM  # here, so that the model's code may import its pipeline

    if not _same_class(type(model), TinyStoryForCausalLM):
        yield f"it is a {_name(type(model))}, not a {TinyStoryForCausalLM.__name__}"
        return
    config = model.config
    attention = config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get(attention)
    if function is not None and not getattr(function, "__module__", "").startswith("transformers."):
        yield f"its attention {attention!r} is not one of transformers"
    if not getattr(config, "is_causal", True):
        yield "its config says is_causal=False"
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if config.position_type == "rope" and (rope_type == "longrope" or "dynamic" in rope_type):
        yield f"rotary positions of the type {rope_type!r} change with the length of the text"

    planned, found = _planned_modules(model, TinyStoryForCausalLM), dict(model.named_modules())
    for name, plan in planned.items():
        module = found.get(name)
        if module is None:
            yield f"{name} is missing"
            return
        where = name or "the model"
        if not _same_class(type(module), type(plan)):
            yield f"{where} is a {_name(type(module))}, not a {type(plan).__name__}"
            continue
        yield from (f"{where} {what}" for what in _changes(module, plan, config))
    if added := found.keys() - planned.keys():
        yield f"{min(added)} was added"
    for kind in {type(module) for module in found.values()}:
        for method in ("__call__", "forward"):
            if _is_patched(kind, method):
                yield f"{_name(kind)}.{method} was replaced"


def _changes(module: nn.Module, plan: nn.Module, config: Any) -> Iterator[str]:
    """What was done to one module since it was built."""
    for kind in HOOKS:
        for hook in getattr(module, kind).values():
            if getattr(hook, "__module__", None) != NO_HOOKS:
                yield f"has a hook ({getattr(hook, '__qualname__', type(hook).__qualname__)})"
    attributes = vars(module)
    shadowing = {"forward", "_call_impl"} | plan._parameters.keys() | plan._buffers.keys() | plan._modules.keys()
    if replaced := attributes.keys() & shadowing:
        yield f"has a {min(replaced)} of its own"
    if attributes.get("config", config) is not config:
        yield "has a config of its own"
    if not isinstance(module, (nn.Dropout, PreTrainedModel)):  # those compute nothing with theirs
        for name, value in vars(plan).items():
            if name.startswith("_") or name in CHANGE_NOTHING or not isinstance(value, (int, float, type(None))):
                continue
            if attributes.get(name) != value:
                yield f"has {name}={attributes.get(name)!r}, its config says {value!r}"
    if module._parameters.keys() != plan._parameters.keys() or module._buffers.keys() != plan._buffers.keys():
        names = (module._parameters.keys() | module._buffers.keys()) ^ (plan._parameters.keys() | plan._buffers.keys())
        yield f"has other parameters or buffers than its config says ({', '.join(sorted(names))})"
        return
    for name, parameter in plan._parameters.items():
        mine = module._parameters[name]
        if (mine is None) != (parameter is None):
            yield f"has {'no' if mine is None else 'a'} {name}"
        elif mine is not None:
            plain = type(mine) is nn.Parameter and mine.dtype in DTYPES and mine.layout is torch.strided
            if not plain or mine.shape != parameter.shape or mine.device.type != "cpu":
                yield f"has a {name} that is no plain float tensor of {tuple(parameter.shape)} in memory"


def _planned_modules(model: PreTrainedModel, kind: type[PreTrainedModel]) -> dict[str, nn.Module]:
    """What the model's config builds, by name, without weights."""
    fields = model.config.to_dict()
    known = _PLANS.get(model)
    if known is None or known[0] != fields:
        config = deepcopy(model.config)
        config._attn_implementation = "eager"
        with torch.device("meta"):
            known = _PLANS[model] = (fields, dict(kind(config).named_modules()))
    return known[1]


def _same_class(mine: type, ours: type) -> bool:
    """Loaded from the Hub or from two folders, the same class has a module of its own each time."""
    return mine is ours or (mine.__qualname__ == ours.__qualname__ and _source(mine) == _source(ours))


@lru_cache(maxsize=64)
def _source(kind: type) -> bytes:
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):  # made in a notebook, or built in
        return repr(kind).encode()


def _is_patched(kind: type, method: str) -> bool:
    """Whether the method was set from outside (as kernel libraries do), not defined in the files of the class."""
    function = inspect.unwrap(getattr(kind, method))
    return function.__module__ not in {base.__module__ for base in kind.__mro__}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _state_of_weights(model: nn.Module) -> tuple[list[torch.dtype], list[int]]:
    """The weights' types, and a sum over each one's bytes: any change of any of them changes it."""
    tensors = [tensor.detach().contiguous() for tensor in (*model.parameters(), *model.buffers())]
    dtypes, count, kernel = [tensor.dtype for tensor in tensors], len(tensors), library()
    if kernel is None:
        return dtypes, [zlib.crc32(tensor.flatten().view(torch.uint8).numpy()) for tensor in tensors]
    sums = (ctypes.c_uint64 * count)()
    addresses = (ctypes.c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
    sizes = (ctypes.c_int64 * count)(*(tensor.nbytes for tensor in tensors))
    kernel.checksums(addresses, sizes, count, threads(), sums)
    return dtypes, list(sums)
