"""On how many threads a story is told: on PyTorch's number of them, in a forked child on one."""

import os

import torch

_forked = False


def threads() -> int:
    """How many threads a decoder may use in this process."""
    return 1 if _forked else torch.get_num_threads()


def _work_alone() -> None:
    global _forked
    _forked = True
    torch.set_num_threads(1)


# OpenMP's threads do not survive a fork, and OpenMP does not notice: a child that had more than one to work on would
# wait for the others for ever, in PyTorch as in the kernel.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)
