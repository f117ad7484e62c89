"""Every way to save gives a folder that every way to load takes, in a process of its own, from another directory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Pipeline, pipeline

from tests.conftest import HUB_FOLDER, ROOT, STORIES_FILE
from tests.hub import Hub

SAVE = """
import json, os, sys
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments
from transformers import pipeline
from trl import SFTConfig, SFTTrainer

source, folder, stories, clone = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
stories = [json.loads(line) for line in open(stories, encoding="utf-8")][:4]
rows = Dataset.from_list([{"input_ids": tokenizer(story["text"])["input_ids"][:64]} for story in stories])
training = {"max_steps": 1, "learning_rate": 0.0, "report_to": "none", "use_cpu": True, "save_strategy": "no"}


def load():
    return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)


def save(model, target):
    model.save_pretrained(target), tokenizer.save_pretrained(target)


os.makedirs(folder), os.chdir(folder)
save(load(), "model")
pipeline("story-generation", model=source, trust_remote_code=True).save_pretrained("pipeline")
pipeline("story-generation", model=load(), tokenizer=tokenizer).save_pretrained("pipeline of a model in memory")
pipeline("text-generation", model=load(), tokenizer=tokenizer).save_pretrained("pipeline for another task")
lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["W_q"], init_lora_weights=False)
save(get_peft_model(load(), LoraConfig(r=2, target_modules=["W_q"])).merge_and_unload(), "merged adapter")

trainer = Trainer(
    model=load(), args=TrainingArguments("runs", **training), train_dataset=rows, processing_class=tokenizer,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train(), trainer.save_model("Trainer")
trainer = SFTTrainer(
    model=load(), processing_class=tokenizer, train_dataset=Dataset.from_list(stories),
    args=SFTConfig("runs", max_length=64, bf16=False, **training),
)
trainer.train(), trainer.save_model("SFTTrainer")

pipeline("story-generation", model="model", trust_remote_code=True).save_pretrained("copy of a copy")

sys.path.insert(0, clone)  # last: the project's own classes, a model that was never loaded among them
from modeling.modeling_tiny_story import TinyStoryConfig, TinyStoryForCausalLM
save(TinyStoryForCausalLM.from_pretrained(source), "class of the clone")
known = json.load(open(f"{source}/config.json"))
bare = TinyStoryForCausalLM(TinyStoryConfig(**{k: v for k, v in known.items() if k not in ("auto_map", "custom_pipelines")}))
bare.load_state_dict(load().state_dict())
save(bare, "model made from scratch")

save(get_peft_model(AutoModelForCausalLM.from_pretrained(folder + "/model", trust_remote_code=True), lora), "adapter")
model = AutoModelForCausalLM.from_pretrained(folder + "/model", trust_remote_code=True)
model.add_adapter(lora)
save(model, "adapter inside the model")
"""  # noqa: E501
WAYS = (
    "model", "pipeline", "pipeline of a model in memory", "pipeline for another task", "merged adapter", "Trainer",
    "SFTTrainer", "copy of a copy", "class of the clone", "model made from scratch",
)  # fmt: skip
LOAD = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

told = {}
for path in sys.argv[1:]:
    known = {"model": path, "trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    tells = {
        "in memory": pipeline("story-generation", model=model, tokenizer=tokenizer),
        "by name": pipeline("story-generation", **known),
    }
    told[path] = {name: tell("The dragon", end="home", max_words=40, seed=3)["story"] for name, tell in tells.items()}
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    told[path]["names"] = [*sorted(config.auto_map.items()), config.custom_pipelines["story-generation"]["impl"]]
    if path == sys.argv[1]:  # the rest follows from these names
        assert type(pipeline(**known)) is type(tells["by name"])
        hidden = AutoModel.from_pretrained(path, trust_remote_code=True)(**tokenizer("Once", return_tensors="pt"))[0]
        assert hidden.shape[-1] == model.config.hidden_size
        write = pipeline("text-generation", **known)
        assert write("The dragon", max_new_tokens=5)[0]["generated_text"].startswith("The dragon")
print(json.dumps(told))
"""
LOAD_ADAPTER = """
import json, sys
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

base, *paths = sys.argv[1:]
told = {}
for path in paths:
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    plain = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    memory = {
        "base": AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True),
        "merged": PeftModel.from_pretrained(plain, path).merge_and_unload(),
        "merged by PEFT": AutoPeftModelForCausalLM.from_pretrained(path, trust_remote_code=True).merge_and_unload(),
    }
    tells = {name: pipeline("story-generation", model=m, tokenizer=tokenizer) for name, m in memory.items()}
    tells["by name"] = pipeline("story-generation", model=path, trust_remote_code=True)
    told[path] = {
        name: tell("The dragon", end="home", max_words=40, seed=3, precision="full")["story"]
        for name, tell in tells.items()
    }
print(json.dumps(told))
"""


def run(program: str, folder: Path, *arguments: str, **environment: str) -> str:
    """A program in a process of its own, in a folder of its own, with a cache of code of its own."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], cwd=folder, capture_output=True, text=True, timeout=600,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.fixture(scope="module")
def expected(tell: Pipeline) -> dict[str, Any]:
    """What every way to load tells."""
    story = tell("The dragon", end="home", max_words=40, seed=3)["story"]
    config = json.loads((HUB_FOLDER / "config.json").read_text(encoding="utf-8"))
    names = [*map(list, sorted(config["auto_map"].items())), config["custom_pipelines"]["story-generation"]["impl"]]
    return {"in memory": story, "by name": story, "names": names}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each way to save."""
    folder = tmp_path_factory.mktemp("saved") / "ways"
    run(SAVE, folder.parent / "there", str(HUB_FOLDER), str(folder), str(STORIES_FILE), str(ROOT))
    return folder


def test_every_copy_loads_in_every_way(saved: Path, tmp_path: Path, expected: dict[str, Any]):
    code = {path.name for path in HUB_FOLDER.glob("*.py")}
    assert {way: {path.name for path in (saved / way).glob("*.py")} for way in WAYS} == dict.fromkeys(WAYS, code)
    told = json.loads(run(LOAD, tmp_path / "elsewhere", *(str(saved / way) for way in WAYS)))
    assert told == {str(saved / way): expected for way in WAYS}


def test_an_adapter_beside_its_base(saved: Path, tmp_path: Path):
    paths = [str(saved / way) for way in ("model", "adapter", "adapter inside the model")]
    for told in json.loads(run(LOAD_ADAPTER, tmp_path / "elsewhere", *paths)).values():
        assert told["merged"] == told["merged by PEFT"] == told["by name"] != told["base"]


PUSH = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model.push_to_hub("writer/model"), tokenizer.push_to_hub("writer/model")
pipeline("story-generation", model=model, tokenizer=tokenizer).push_to_hub("writer/pipeline")
"""
COPY = """
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained("copy")
AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained("copy")
"""


@pytest.mark.slow
def test_what_is_pushed_loads_by_its_name(tmp_path: Path, expected: dict[str, Any]):
    names, copy = ("writer/model", "writer/pipeline"), str(tmp_path / "elsewhere" / "copy")
    with Hub() as hub:
        there = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}
        run(PUSH, tmp_path / "there", str(HUB_FOLDER), HF_HOME=str(tmp_path / "home"), **there)
        there["HF_HOME"] = str(tmp_path / "another home")
        told = run(LOAD + COPY, tmp_path / "elsewhere", *names, **there)
    assert json.loads(told) == dict.fromkeys(names, expected)
    # A copy of it stands by itself: nobody is asked for its code.
    told = run(LOAD, tmp_path / "third", copy, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "no home"))
    assert json.loads(told) == {copy: expected}


def test_a_model_in_memory_has_its_task(trained_model, tokenizer, expected: dict[str, Any]):
    tell = pipeline("story-generation", model=trained_model, tokenizer=tokenizer, trust_remote_code=True)
    assert tell("The dragon", end="home", max_words=40, seed=3)["story"] == expected["in memory"]
