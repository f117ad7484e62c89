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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .compiler_tiny_story import library
from .int8_tiny_story import Int8Weights
from .threads_tiny_story import threads

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
NO_HOOKS = "transformers.utils.output_capturing"  # output_hidden_states=True leaves hooks that change nothing
CHANGE_NOTHING = {"training", "gradient_checkpointing"}  # attributes of a module

_PLANS: WeakKeyDictionary[nn.Module, "tuple[dict, dict[str, _Plan]]"] = WeakKeyDictionary()
_PACKED: WeakKeyDictionary[nn.Module, tuple[tuple, Int8Weights]] = WeakKeyDictionary()


def why_not_packed(model: nn.Module) -> str | None:
    """What about this model a packed decoder would not know; None if it is just what its config builds."""
    if nn.modules.module._has_any_global_hook():
        return "a global hook is registered for all modules"
    return next(_differences(model), None)


def packed_weights(model: PreTrainedModel, kind: type[Int8Weights]) -> Any:
    """The model's packed weights, packed again after any of its weights or its config has changed."""
    state = (kind, vars(model.config), _state_of_weights(model))
    known = _PACKED.get(model)
    if known is None or known[0] != state:
        with torch.inference_mode():
            known = _PACKED[model] = (deepcopy(state), kind(model))
    return known[1]


@dataclass(frozen=True)
class _Plan:
    """What a config makes of one module."""

    kind: type[nn.Module]
    numbers: dict[str, int | float | None]  # the attributes it computes with
    shapes: dict[str, tuple[int, ...] | None]  # of its parameters
    buffers: frozenset[str]
    owned: frozenset[str]  # what an attribute of the instance would stand before

    @classmethod
    def of(cls, module: nn.Module) -> "_Plan":
        numbers = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in CHANGE_NOTHING and isinstance(value, (int, float, type(None)))
        }
        if isinstance(module, (nn.Dropout, PreTrainedModel)):  # these compute nothing with theirs
            numbers = {}
        return cls(
            type(module),
            numbers,
            {name: None if tensor is None else tuple(tensor.shape) for name, tensor in module._parameters.items()},
            frozenset(module._buffers),
            frozenset(("forward", "_call_impl", *module._parameters, *module._buffers, *module._modules)),
        )


def _plans(model: PreTrainedModel, kind: type[PreTrainedModel]) -> dict[str, _Plan]:
    """What the model's config makes of each module, by its name."""
    known = _PLANS.get(model)
    if known is None or known[0] != vars(model.config):
        config = deepcopy(model.config)
        config._attn_implementation = "eager"
        with torch.device("meta"):
            built = kind(config)
        plans = {name: _Plan.of(module) for name, module in built.named_modules()}
        known = _PLANS[model] = (deepcopy(vars(model.config)), plans)
    return known[1]


def _differences(model: Any) -> Iterator[str]:
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

    plans, found = _plans(model, TinyStoryForCausalLM), dict(model.named_modules())
    for name, plan in plans.items():
        module = found.get(name)
        if module is None:
            yield f"{name} is missing"
        elif not _same_class(type(module), plan.kind):
            yield f"{name} is a {_name(type(module))}, not a {plan.kind.__name__}"
        else:
            yield from (f"{name or 'the model'} {change}" for change in _changes(module, plan, config))
    if added := found.keys() - plans.keys():
        yield f"{min(added)} was added"
    for kind in {type(module) for module in found.values()}:
        for method in ("__call__", "forward"):
            if _is_patched(kind, method):
                yield f"{_name(kind)}.{method} was replaced"


def _changes(module: nn.Module, plan: _Plan, config: PreTrainedConfig) -> Iterator[str]:
    """What was done to one module since it was built."""
    attributes = vars(module)
    for kind in HOOKS:
        for hook in attributes[kind].values():
            if getattr(hook, "__module__", None) != NO_HOOKS:
                yield f"has a hook ({getattr(hook, '__qualname__', type(hook).__qualname__)})"
    if replaced := {name for name in plan.owned & attributes.keys() if not _is_own(module, name)}:
        yield f"has a {min(replaced)} of its own"
    if attributes.get("config", config) is not config:
        yield "has a config of its own"
    for name, value in plan.numbers.items():
        if attributes.get(name) != value:
            yield f"has {name}={attributes.get(name)!r}, its config says {value!r}"
    tensors = module._parameters.keys() | module._buffers.keys()
    if others := tensors ^ (plan.shapes.keys() | plan.buffers):
        yield f"has other parameters or buffers than its config says ({', '.join(sorted(others))})"
        return
    for name, shape in plan.shapes.items():
        tensor = module._parameters.get(name)
        if (tensor is None) != (shape is None):
            yield f"has {'no' if tensor is None else 'a'} {name}"
        elif tensor is not None:
            plain = type(tensor) is nn.Parameter and tensor.dtype in DTYPES and tensor.layout is torch.strided
            if not plain or tensor.shape != shape or tensor.device.type != "cpu":
                yield f"has a {name} that is no plain float tensor of {shape} in memory"


def _same_class(mine: type, ours: type) -> bool:
    """Loaded from the Hub or from two folders, the same class has a module of its own each time."""
    return mine is ours or (mine.__qualname__ == ours.__qualname__ and _source(mine) == _source(ours))


@lru_cache(maxsize=64)
def _source(kind: type) -> bytes:
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):  # made in a notebook, or built in
        return repr(kind).encode()


def _is_own(module: nn.Module, name: str) -> bool:
    """Whether the attribute is the module's own method, put on it again (as exporters and accelerate do)."""
    method = vars(module)[name]
    return isinstance(method, MethodType) and method == MethodType(getattr(type(module), name), module)


def _is_patched(kind: type, method: str) -> bool:
    """Whether the method was set from outside (as kernel libraries do), not defined in the files of the class."""
    function = inspect.unwrap(getattr(kind, method))
    return function.__module__ not in {base.__module__ for base in kind.__mro__}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _state_of_weights(model: nn.Module) -> tuple[list[torch.dtype], list[int]]:
    """The weights' types, and a sum over each one's bytes: any change of any of them changes it."""
    owned = (own for module in model.modules() for own in (module._parameters, module._buffers))
    unique = {id(tensor): tensor for own in owned for tensor in own.values() if tensor is not None}  # some are tied
    tensors = [tensor.detach().contiguous() for tensor in unique.values()]
    dtypes, count, kernel = [tensor.dtype for tensor in tensors], len(tensors), library()
    if kernel is None:
        return dtypes, [zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data) for tensor in tensors]
    sums = (ctypes.c_uint64 * count)()
    addresses = (ctypes.c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
    sizes = (ctypes.c_int64 * count)(*(tensor.nbytes for tensor in tensors))
    kernel.checksums(addresses, sizes, count, threads(), sums)
    return dtypes, list(sums)
