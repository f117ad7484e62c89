"""The model behind the page: one in memory, stories told in turn."""

import threading
from pathlib import Path
from typing import Any

from transformers import Pipeline, pipeline


class Busy(Exception):
    """Too many readers are waiting."""


class TimeLimit(Exception):
    """A story took too long."""


class Engine:
    def __init__(self, tellers: dict[str, Pipeline], revision: str):
        self.tellers, self.revision, self._lock = tellers, revision, threading.Lock()

    @classmethod
    def load(cls, model_id: str, revision: str | None = None) -> "Engine":
        """The model with both its recipes; a first word from each builds its decoder before a reader comes."""
        known = {"revision": revision, "trust_remote_code": True}
        modern = pipeline("story-generation", model=model_id, **known)
        folder = {"subfolder": "classic"}
        classic = pipeline(
            "story-generation", model=model_id, tokenizer=modern.tokenizer, model_kwargs=folder, **known
        )
        for teller in (modern, classic):
            teller("Once", max_words=1)
        tellers = {"modern": modern, "classic": classic}
        return cls(tellers, revision or Path(model_id).name)

    def tell(self, wishes: dict[str, Any], num_drafts: int = 1) -> list[dict[str, Any]]:
        """The drafts, as the pipeline gives them.

        Args:
            wishes: keyword arguments of the pipeline; "model" names the recipe.
        """
        wishes = dict(wishes)
        teller = self.tellers[wishes.pop("model", "modern")]
        with self._lock:
            told = teller(**wishes, num_stories=num_drafts)
        return told if isinstance(told, list) else [told]
