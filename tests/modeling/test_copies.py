"""Every way to save gives a folder that every way to load takes, in a process of its own, from another directory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HUB_FOLDER, STORIES_FILE
from tests.hub import Hub

# How a saved folder is read: each gives the same story.
LOAD = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
path, wishes = sys.argv[1], {"end": "home", "max_words": 40, "seed": 3}
told = {"pipeline": pipeline("story-generation", model=path, trust_remote_code=True)("The dragon", **wishes)["story"]}
told["task from the config"] = pipeline(model=path, trust_remote_code=True)("The dragon", **wishes)["story"]
config = AutoConfig.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path)
told["model in memory"] = pipeline("story-generation", model=model, tokenizer=tokenizer)("The dragon", **wishes)["story"]
write = pipeline("text-generation", model=path, trust_remote_code=True)
assert write("The dragon", max_new_tokens=5)[0]["generated_text"].startswith("The dragon")
hidden = AutoModel.from_pretrained(path, trust_remote_code=True)(**tokenizer("Once", return_tensors="pt"))[0]
assert hidden.shape[-1] == config.hidden_size == AutoModelForCausalLM.from_config(config, trust_remote_code=True).fc.in_features
print(json.dumps(told))
"""  # noqa: E501
OPEN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
target, stories = sys.argv[2], [json.loads(line) for line in open(sys.argv[3], encoding="utf-8")][:4]
"""
ROWS = """
from datasets import Dataset
rows = Dataset.from_list([{"input_ids": tokenizer(story["text"])["input_ids"][:64]} for story in stories])
"""
SAVE = {
    "model": "model.save_pretrained(target); tokenizer.save_pretrained(target)",
    "pipeline": """
pipeline("story-generation", model=sys.argv[1], trust_remote_code=True).save_pretrained(target)""",
    "pipeline in memory": """
pipeline("story-generation", model=model, tokenizer=tokenizer).save_pretrained(target)""",
    "pipeline for another task": """
pipeline("text-generation", model=model, tokenizer=tokenizer).save_pretrained(target)""",
    "model class of the package": f"""
sys.path.insert(0, {str(HUB_FOLDER.parent)!r})
from modeling.modeling_tiny_story import TinyStoryForCausalLM
TinyStoryForCausalLM.from_pretrained(sys.argv[1]).save_pretrained(target); tokenizer.save_pretrained(target)""",
    "a model from its bare configuration": f"""
sys.path.insert(0, {str(HUB_FOLDER.parent)!r})
from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM
fields = {{name: getattr(model.config, name) for name in TinyStoryConfig.__dataclass_fields__ if name in json.load(
    open(sys.argv[1] + "/config.json"))}}
fields.pop("auto_map", None), fields.pop("custom_pipelines", None)
bare = TinyStoryForCausalLM(TinyStoryConfig(**fields)); bare.load_state_dict(model.state_dict())
bare.save_pretrained(target); tokenizer.save_pretrained(target)""",
    "trainer": ROWS
    + """
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
trainer = Trainer(
    model=model, args=TrainingArguments(target + "-runs", max_steps=1, learning_rate=0.0, report_to="none"),
    train_dataset=rows, processing_class=tokenizer, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train(); trainer.save_model(target)""",
    "trl": """
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(stories),
    args=SFTConfig(target + "-runs", max_steps=1, learning_rate=0.0, report_to="none", max_length=64, use_cpu=True,
                   bf16=False, gradient_checkpointing=False),
)
trainer.train(); trainer.save_model(target)""",
    "peft, merged": """
from peft import LoraConfig, get_peft_model
model = get_peft_model(model, LoraConfig(r=2, target_modules=["W_q"])).merge_and_unload()
model.save_pretrained(target); tokenizer.save_pretrained(target)""",
}


def run(program: str, folder: Path, *arguments: str, **environment: str) -> str:
    """A program in a process of its own, in an empty folder, with a cache of code of its own."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def expected(tell: Any) -> str:
    return tell("The dragon", end="home", max_words=40, seed=3)["story"]


def check(path: str, folder: Path, expected: str, **environment: str) -> None:
    told = json.loads(run(LOAD, folder, path, **environment).splitlines()[-1])
    assert told == dict.fromkeys(("pipeline", "task from the config", "model in memory"), expected)


@pytest.mark.parametrize("way", SAVE)
def test_a_saved_copy_loads_in_every_way(tmp_path: Path, expected: str, way: str):
    target = tmp_path / "copy"
    run(OPEN + SAVE[way], tmp_path / "there", str(HUB_FOLDER), str(target), str(STORIES_FILE))
    assert {path.name for path in target.glob("*.py")} == {path.name for path in HUB_FOLDER.glob("*.py")}
    check(str(target), tmp_path / "elsewhere", expected)


def test_a_copy_of_a_copy(tmp_path: Path, expected: str):
    folders = [HUB_FOLDER, *(tmp_path / name for name in ("first", "second", "third"))]
    for number, way in enumerate(("model", "pipeline", "pipeline in memory")):
        program = OPEN + SAVE[way]
        run(program, tmp_path / f"there {number}", str(folders[number]), str(folders[number + 1]), str(STORIES_FILE))
    check(str(folders[-1]), tmp_path / "elsewhere", expected)


ADAPTER = """
from peft import LoraConfig, get_peft_model
lora = LoraConfig(r=2, target_modules=["W_q"], init_lora_weights=False)
"""
# Two forms: PEFT's own wrapper, which writes the adapter only, and transformers' adapter inside the model.
ADAPTERS = {
    "peft": ADAPTER + "get_peft_model(model, lora).save_pretrained(target); tokenizer.save_pretrained(target)",
    "inside": ADAPTER + "model.add_adapter(lora); model.save_pretrained(target); tokenizer.save_pretrained(target)",
}
LOAD_ADAPTER = """
import json, sys
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
base, path, wishes = sys.argv[1], sys.argv[2], {"end": "home", "max_words": 40, "seed": 3, "precision": "full"}
tokenizer = AutoTokenizer.from_pretrained(path)
plain = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
told = {"base": pipeline("story-generation", model=plain, tokenizer=tokenizer)("The dragon", **wishes)["story"]}
merged = PeftModel.from_pretrained(plain, path).merge_and_unload()
told["merged"] = pipeline("story-generation", model=merged, tokenizer=tokenizer)("The dragon", **wishes)["story"]
peft = AutoPeftModelForCausalLM.from_pretrained(path, trust_remote_code=True)
told["peft"] = pipeline("story-generation", model=peft, tokenizer=tokenizer)("The dragon", **wishes)["story"]
tell = pipeline("story-generation", model=path, trust_remote_code=True)
told["pipeline"] = tell("The dragon", **wishes)["story"]
print(json.dumps(told))
"""


@pytest.mark.parametrize("way", ADAPTERS)
def test_an_adapter_beside_its_base(tmp_path: Path, way: str):
    base, target = tmp_path / "base", tmp_path / "adapter"
    run(OPEN + SAVE["model"], tmp_path / "there", str(HUB_FOLDER), str(base), str(STORIES_FILE))
    run(OPEN + ADAPTERS[way], tmp_path / "there", str(base), str(target), str(STORIES_FILE))
    told = json.loads(run(LOAD_ADAPTER, tmp_path / "elsewhere", str(base), str(target)).splitlines()[-1])
    assert told["merged"] == told["peft"] == told["pipeline"] != told["base"]


PUSH = {
    "model": "model.push_to_hub(target); tokenizer.push_to_hub(target)",
    "pipeline": "pipeline('story-generation', model=model, tokenizer=tokenizer).push_to_hub(target)",
}


@pytest.mark.parametrize("way", PUSH)
def test_what_is_pushed_loads_by_its_name(tmp_path: Path, expected: str, way: str):
    with Hub() as hub:
        there = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}
        run(
            OPEN + PUSH[way], tmp_path / "there", str(HUB_FOLDER), "writer/stories", str(STORIES_FILE),
            HF_HOME=str(tmp_path / "home"), **there,
        )  # fmt: skip
        check("writer/stories", tmp_path / "elsewhere", expected, HF_HOME=str(tmp_path / "other home"), **there)
        # A copy of it stands by itself: nobody is asked for its code.
        run(
            OPEN + SAVE["model"], tmp_path / "third", "writer/stories", str(tmp_path / "copy"), str(STORIES_FILE),
            HF_HOME=str(tmp_path / "other home"), **there,
        )  # fmt: skip
    check(str(tmp_path / "copy"), tmp_path / "fourth", expected, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "none"))


def test_a_model_in_memory_has_its_task_in_this_process(trained_model: Any, tokenizer: Any, expected: str):
    from transformers import pipeline

    tell: Callable[..., dict] = pipeline("story-generation", model=trained_model, tokenizer=tokenizer)
    assert tell("The dragon", end="home", max_words=40, seed=3)["story"] == expected
    again = pipeline("story-generation", model=trained_model, tokenizer=tokenizer, trust_remote_code=True)
    assert again("The dragon", end="home", max_words=40, seed=3)["story"] == expected
