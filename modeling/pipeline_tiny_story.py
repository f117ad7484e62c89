"""The pipeline "story-generation": `tell("She", end="happy", max_words=150)`."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from transformers import AutoModelForCausalLM, Pipeline

from .decoder_tiny_story import Precision
from .details_tiny_story import story_details
from .generation_tiny_story import Story, write_stories
from .request_tiny_story import StoryRequest

SEEDS = 2**31  # seeds drawn lie below
CANDIDATE_SEEDS = 1_000_003  # from one candidate's seed to the next one's


class StoryGenerationPipeline(Pipeline):
    """Tell stories from the reader's first words to the reader's last.

        tell = pipeline("story-generation", model=..., trust_remote_code=True)
        tell("She", end="happy", max_words=150)["story"]

    Args of a call (see `StoryRequest` for each):
        start: one start, or a list of them.
        continue_from: instead of start, an earlier story's text (or a list of them); the new story begins with it.
        end, max_words, include, length, stop_at_first, temperature, top_p, dry_multiplier: as in `StoryRequest`, for
            every story of the call.
        num_stories: stories for each start.
        num_candidates: stories drawn for each story given; the one the model finds likeliest, token for token, is kept.
        seed: of the first story; the next ones count up from it. None draws one. The result names its own story's:
            with num_candidates=1 it gives that story again.
        precision: "auto", "native", "int8" or "full", as in `open_decoder`.
        details: also tell how sure the model was of each word; takes about as long again as the story (see
            `story_details`).

    Returns:
        {"story", "start", "end", "finish_reason", "num_words", "num_tokens", "log_probability", "seed"} and, if asked
        for, "details"; a list of them if num_stories is above 1; and for a list of starts, a list with the one or the
        other for each. "log_probability" is the mean of the tokens written, in nats.

    Raises:
        ValueError: what cannot be done, before any work.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __call__(self, start: str | list[str] | None = None, **kwargs: Any) -> Any:
        return super().__call__({"start": start}, **kwargs)

    def stream(self, start: str | None = None, **kwargs: Any) -> Iterator[str]:
        """The text of one story in pieces, as they are written; what was given is final. Takes what a call takes.

        Raises:
            ValueError: as in a call, and on num_stories or num_candidates above 1; raised here, not by the first piece.
        """
        return (piece for piece in self.stream_story(start, **kwargs) if isinstance(piece, str))

    def stream_story(self, start: str | None = None, **kwargs: Any) -> Iterator[str | dict[str, Any]]:
        """Like `stream`; the last thing given is the whole result, as a call would return it."""
        requests, (is_list, _, _), precision = self._requests(start, **kwargs)
        if is_list or len(requests) > 1:
            raise ValueError("stream tells one story: give one start, and leave num_stories and num_candidates at 1")
        return self._write_one(requests[0], precision)

    def _write_one(self, request: StoryRequest, precision: Precision) -> Iterator[str | dict[str, Any]]:
        for _, piece, story in write_stories(self.model, self.tokenizer, [request], precision):
            if piece:
                yield piece
            if story.finish_reason:
                yield self._result(story)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return kwargs, {}, {}

    def preprocess(self, inputs: dict[str, Any], details: bool = False, **kwargs: Any) -> dict[str, Any]:
        requests, shape, precision = self._requests(inputs["start"], **kwargs)
        return {"requests": requests, "shape": shape, "precision": precision, "details": details}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        stories: dict[int, Story] = {}
        for index, _, story in write_stories(self.model, self.tokenizer, inputs["requests"], inputs["precision"]):
            stories[index] = story
        return {
            "stories": [stories[i] for i in range(len(stories))],
            "shape": inputs["shape"],
            "details": inputs["details"],
        }

    def postprocess(self, outputs: dict[str, Any]) -> Any:
        is_list, num_stories, num_candidates = outputs["shape"]
        stories = [max(group, key=self._likelihood) for group in _groups(outputs["stories"], num_candidates)]
        results = [self._result(story) for story in stories]
        if outputs["details"]:
            for result, story in zip(results, stories, strict=True):
                result["details"] = story_details(self.model, self.tokenizer, story)
        if num_stories > 1:
            grouped = _groups(results, num_stories)
            return grouped if is_list else grouped[0]
        return results if is_list else results[0]

    def _requests(
        self,
        start: str | list[str] | None,
        continue_from: str | list[str] | None = None,
        num_stories: int = 1,
        num_candidates: int = 1,
        seed: int | None = None,
        precision: Precision = "auto",
        **wishes: Any,
    ) -> tuple[list[StoryRequest], tuple[bool, int, int], Precision]:
        known = set(StoryRequest.__dataclass_fields__) - {"start", "seed"}
        if unknown := sorted(set(wishes) - known):
            options = {"continue_from", "num_stories", "num_candidates", "seed", "precision", "details"}
            raise ValueError(f"unknown argument {unknown[0]!r}; accepted: {sorted(known | options)}")
        for name, value in (("num_stories", num_stories), ("num_candidates", num_candidates)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
        if seed is None:
            seed = random.randrange(SEEDS)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
        if (start is None) == (continue_from is None):
            raise ValueError("give either start or continue_from")
        start = continue_from if start is None else start
        starts = [start] if not isinstance(start, (list, tuple)) else list(start)
        if not starts:
            raise ValueError("start is an empty list; give at least one start")
        requests = [StoryRequest(one, **wishes) for one in starts for _ in range(num_stories)]
        requests = [
            replace(request, seed=seed + index + candidate * CANDIDATE_SEEDS)
            for index, request in enumerate(requests)
            for candidate in range(num_candidates)
        ]
        return requests, (isinstance(start, (list, tuple)), num_stories, num_candidates), precision

    @staticmethod
    def _likelihood(story: Story) -> float:
        """For the choice of a candidate: a story that reached its limit stands behind all that ended."""
        return story.mean_log_probability - (1000.0 if story.finish_reason == "length" else 0.0)

    @staticmethod
    def _result(story: Story) -> dict[str, Any]:
        return {
            "story": story.text,
            "start": story.request.start,
            "end": story.request.end,
            "finish_reason": story.finish_reason,
            "num_words": story.num_words,
            "num_tokens": len(story.ids),
            "log_probability": story.mean_log_probability,
            "seed": story.request.seed,
        }


def _groups(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


# What `PIPELINE_REGISTRY.register_pipeline` would set: `save_pretrained` of the pipeline then takes this file along.
StoryGenerationPipeline._registered_impl = {
    "story-generation": {"impl": StoryGenerationPipeline, "pt": (AutoModelForCausalLM,), "type": "text"}
}
