"""training/train.py under FSDP2 on processors: `torchrun --nproc_per_node 2 tests/training/sharded.py [fields]`.

Accelerate offers FSDP on accelerators only, though torch's `fully_shard` runs on processors as well. So this tells
Accelerate the processes have GPUs, once it has set them up on the processor; all else is as `accelerate launch` with
training/configs/accelerate/fsdp2.yaml has it.
"""

import os
import runpy
from pathlib import Path

import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = yaml.safe_load((ROOT / "training/configs/accelerate/fsdp2.yaml").read_text())

if __name__ == "__main__":
    os.environ |= {"ACCELERATE_USE_FSDP": "true"}
    os.environ |= {name.upper(): str(value) for name, value in LAUNCH["fsdp_config"].items()}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    runpy.run_path(str(ROOT / "training/train.py"), run_name="__main__")
