"""The pipeline "story-generation": `tell("She", end="happy", max_words=150)`."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from transformers import AutoModelForCausalLM, Pipeline

from .generation_tiny_story import Story, write_stories
from .request_tiny_story import StoryRequest, count_words

SEEDS = 2**31  # seeds drawn lie below


class StoryGenerationPipeline(Pipeline):
    """Tell stories from the reader's first words to the reader's last.

        tell = pipeline("story-generation", model=..., trust_remote_code=True)
        tell("She", end="happy", max_words=150)["story"]

    Args of a call (see `StoryRequest` for each):
        start: one start, or a list of them.
        end, max_words, stop_at_first, temperature, top_p: as in `StoryRequest`, for every story of the call.
        num_stories: stories for each start.
        seed: of the first story; the next ones count up from it. None draws one, and the result says which.

    Returns:
        {"story", "start", "end", "finish_reason", "num_words", "num_tokens", "seed"}; a list of them if num_stories
        is above 1; and for a list of starts, a list with the one or the other for each.

    Raises:
        ValueError: what cannot be done, before any work.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __call__(self, start: str | list[str], **kwargs: Any) -> Any:
        return super().__call__({"start": start}, **kwargs)

    def stream(self, start: str, **kwargs: Any) -> Iterator[str]:
        """The text of one story in pieces, as they are written; what was given is final. Takes what a call takes.

        Raises:
            ValueError: as in a call, and on num_stories above 1; raised here, not by the first piece.
        """
        return (piece for piece in self.stream_story(start, **kwargs) if isinstance(piece, str))

    def stream_story(self, start: str, **kwargs: Any) -> Iterator[str | dict[str, Any]]:
        """Like `stream`; the last thing given is the whole result, as a call would return it."""
        requests, _ = self._requests(start, **kwargs)
        if not isinstance(start, str) or len(requests) > 1:
            raise ValueError("stream tells one story: give one start, and leave num_stories at 1")
        return self._write_one(requests[0])

    def _write_one(self, request: StoryRequest) -> Iterator[str | dict[str, Any]]:
        for _, piece, story in write_stories(self.model, self.tokenizer, [request]):
            if piece:
                yield piece
            if story.finish_reason:
                yield self._result(story)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return kwargs, {}, {}

    def preprocess(self, inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        requests, shape = self._requests(inputs["start"], **kwargs)
        return {"requests": requests, "shape": shape}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        stories: dict[int, Story] = {}
        for index, _, story in write_stories(self.model, self.tokenizer, inputs["requests"]):
            stories[index] = story
        return {"stories": [stories[i] for i in range(len(stories))], "shape": inputs["shape"]}

    def postprocess(self, outputs: dict[str, Any]) -> Any:
        results = [self._result(story) for story in outputs["stories"]]
        is_list, num_stories = outputs["shape"]
        if num_stories > 1:
            grouped = [results[i : i + num_stories] for i in range(0, len(results), num_stories)]
            return grouped if is_list else grouped[0]
        return results if is_list else results[0]

    def _requests(
        self, start: str | list[str], num_stories: int = 1, seed: int | None = None, **wishes: Any
    ) -> tuple[list[StoryRequest], tuple[bool, int]]:
        known = set(StoryRequest.__dataclass_fields__) - {"start", "seed"}
        if unknown := sorted(set(wishes) - known):
            raise ValueError(f"unknown argument {unknown[0]!r}; accepted: {sorted(known | {'num_stories', 'seed'})}")
        if isinstance(num_stories, bool) or not isinstance(num_stories, int) or num_stories < 1:
            raise ValueError(f"num_stories must be a whole number of at least 1, got {num_stories!r}")
        if seed is None:
            seed = random.randrange(SEEDS)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
        starts = [start] if isinstance(start, str) else list(start)
        if not starts:
            raise ValueError("start is an empty list; give at least one start")
        requests = [StoryRequest(one, **wishes) for one in starts for _ in range(num_stories)]
        requests = [replace(request, seed=seed + index) for index, request in enumerate(requests)]
        return requests, (not isinstance(start, str), num_stories)

    @staticmethod
    def _result(story: Story) -> dict[str, Any]:
        return {
            "story": story.text,
            "start": story.request.start,
            "end": story.request.end,
            "finish_reason": story.finish_reason,
            "num_words": count_words(story.text),
            "num_tokens": len(story.ids),
            "seed": story.request.seed,
        }


# What `PIPELINE_REGISTRY.register_pipeline` would set: `save_pretrained` of the pipeline then takes this file along.
StoryGenerationPipeline._registered_impl = {
    "story-generation": {"impl": StoryGenerationPipeline, "pt": (AutoModelForCausalLM,), "type": "text"}
}
