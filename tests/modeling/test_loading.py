"""A process that knows nothing of this project loads the folder by path, as a user of the Hub would."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import HUB_FOLDER

PROGRAM = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
path = sys.argv[1]
config = AutoConfig.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
base = AutoModel.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
write = pipeline("text-generation", model=path, trust_remote_code=True)
tell = pipeline("story-generation", model=path, trust_remote_code=True)
ids = tokenizer("Once upon a time", return_tensors="pt")
same = (model.model(**ids)[0] - base(**ids)[0]).abs().max().item()
model.save_pretrained(sys.argv[2]); tokenizer.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
print(json.dumps({
    "classes": [type(x).__name__ for x in (config, base, model, tell)],
    "bos": ids["input_ids"][0, 0].item(), "same": same,
    "text": write("Once upon a time", max_new_tokens=12, do_sample=False)[0]["generated_text"],
    "story": tell("She", end="happy", max_words=40, seed=1),
    "resaved": (again(**ids).logits - model(**ids).logits).abs().max().item(),
    "project": [m for m in sys.modules if m.split(".")[0] in ("modeling", "training")],
}))
"""


def test_everything_loads_outside_the_project(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(HUB_FOLDER), str(tmp_path / "again")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["classes"] == ["TinyStoryConfig", "TinyStoryModel", "TinyStoryForCausalLM", "StoryGenerationPipeline"]
    assert found["bos"] == 1
    assert found["same"] == found["resaved"] == 0
    assert found["text"].startswith("Once upon a time") and len(found["text"]) > 20
    assert found["story"]["story"].startswith("She") and found["story"]["finish_reason"] == "ending"
    assert found["project"] == []
