"""The pipeline "story-generation": `tell("She", end="happy", max_words=150)`."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .closing_tiny_story import ending_cost
from .configuration_tiny_story import TinyStoryConfig
from .decoder_tiny_story import Precision, open_decoder
from .details_tiny_story import story_details
from .generation_tiny_story import CHEAP, Story, close_story, plan, write_stories
from .request_tiny_story import StoryRequest, is_nothing, whole_number, yes_or_no
from .story_tiny_story import vocabulary_of

SEEDS = 2**31  # seeds drawn lie below
CANDIDATE_SEEDS = 1_000_003  # from one candidate's seed to the next one's
CLOSING_PLACES, PATIENT = 2, 16  # where a draft's closing is tried, if there are so many: who asks for them has time
CLOSED_SHARE = 2  # one candidate in so many, the likeliest, gets a closing, which takes as long as half a story; from
# PATIENT on more of them do, as long as all closings cost much
CLOSING_SHARE = 0.03  # of a closing's cost, in a candidate's mean nats: what a reader minds most
BATCH_SIZE = 16  # stories written side by side, unless the call says how many
TEXTS = ("start", "continue_from")  # what the story begins with
WISHES = tuple(name for name in StoryRequest.__dataclass_fields__ if name not in ("start", "seed"))
SETTINGS = ("num_stories", "num_candidates", "seed", "precision", "batch_size", "details")


class StoryGenerationPipeline(Pipeline):
    """Tell stories from the reader's first words to the reader's last.

        tell = pipeline("story-generation", model=..., trust_remote_code=True)
        tell("She", end="happy", max_words=150)["story"]
        tell([{"start": "She", "end": "happy"}, {"start": "He", "end": "home", "max_words": 60}])
        for result in tell(dataset["start"], end="home", batch_size=32):
            print(result["story"])

    Args of a call (see `StoryRequest` for each):
        start: one start; or a mapping with it and wishes of its own, its seed too, which come before the call's (None
            and NaN, which stand for nothing in data sets, count as not given); or many of either, as a list, or as
            something that gives them one by one: a generator, a data set, a column of one, `KeyDataset`.
        continue_from: instead of start, an earlier story's text (or many); the new story begins with it.
        end, max_words, include, length, stop_at_first, temperature, top_p, dry_multiplier: as in `StoryRequest`, for
            every story of the call.
        num_stories: stories for each start.
        num_candidates: drafts of each story. They compete while they are written, the less likely half going on from
            the likelier half every few words; of what comes of them the one is kept that the model finds likeliest,
            token for token, its closing sentence counting most.
        seed: of the first story; the next ones count up from it. None draws one. The result names its own story's: with
            it and the same num_candidates the story comes again.
        batch_size: stories written side by side, which changes their speed, not their words; all drafts of one story
            are, whatever their number. None: 16; but the stories of one start where the next may have to be waited for,
            as of a generator.
        precision: "auto", "native", "int8" or "full", as in `open_decoder`.
        details: also tell how sure the model was of each word, which takes about as long again as the story (see
            `story_details`), and which drafts lost.

    Returns:
        {"story", "start", "end", "finish_reason", "num_words", "num_tokens", "num_searches", "log_probability",
        "score", "seed"} and, if asked for, "details", with "rejected" in it: {"story", "score"} of the likeliest other
        drafts, the best first. num_searches are the times that a word or the ending did not come by itself,
        log_probability is the mean of the tokens written, in nats, score what candidates are chosen by: the same of
        those after the opening, less what an unlikely closing sentence takes away. A list of them if num_stories is
        above 1; for a list, a list with the one or the other for each; for what comes one by one, an iterator that
        tells as it goes.

    Raises:
        ValueError: what cannot be done, before any work; of what comes one by one, when it has come.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __call__(
        self,
        start: Any = None,
        continue_from: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,  # of a `DataLoader`, in other pipelines
        **kwargs: Any,
    ) -> Any:
        """Tell stories; the class says what the arguments are."""
        inputs = _inputs(start, continue_from)
        parameters = self._parameters(**kwargs)
        if isinstance(inputs, Mapping):
            return self.run_single(inputs, *parameters)
        batch_size = self._batch_size if batch_size is None else batch_size
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, 1)
        elif isinstance(start if continue_from is None else continue_from, Sized):
            batch_size = BATCH_SIZE
        else:
            batch_size = parameters[2].get("num_stories", 1) * parameters[2].get("num_candidates", 1)
        told = self.get_iterator(inputs, 0, batch_size, *parameters)
        return list(told) if isinstance(inputs, list) else told

    def stream(self, start: Any = None, **kwargs: Any) -> Iterator[str]:
        """The text of one story in pieces, as they are written; what was given is final. Takes what a call takes.

        Raises:
            ValueError: as in a call, and on more than one story; raised here, not by the first piece.
        """
        return (piece for piece in self.stream_story(start, **kwargs) if isinstance(piece, str))

    def stream_story(
        self,
        start: Any = None,
        continue_from: Any = None,
        batch_size: int | None = None,  # nothing to one story, like num_workers
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Iterator[str | dict[str, Any]]:
        """Like `stream`; the last thing given is the whole result, as a call would return it."""
        inputs = _inputs(start, continue_from)
        of_request, of_decoder, of_result = self._parameters(**kwargs)
        requests = self.preprocess(inputs, **of_request) if isinstance(inputs, Mapping) else []
        if len(requests) != 1:
            raise ValueError("stream tells one story: give one start, and leave num_stories and num_candidates at 1")
        return self._write_one(requests[0], of_decoder, of_result)

    def _write_one(
        self, request: StoryRequest, of_decoder: dict[str, Any], of_result: dict[str, Any]
    ) -> Iterator[str | dict[str, Any]]:
        for _, piece, story in write_stories(self.model, self.tokenizer, [request], **of_decoder):
            if piece:
                yield piece
            if story.finish_reason:
                yield self.postprocess([story], **of_result)

    def _parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        """Those of `preprocess`, `forward` and `postprocess`, the pipeline's own too; a seed is drawn if none is given.

        Raises:
            ValueError: an argument is unknown, or not what it must be; a story's wishes are looked at later. Or the
                model is of another kind.
        """
        config = getattr(self.model, "config", None)
        if getattr(config, "model_type", None) != TinyStoryConfig.model_type or not self.model.can_generate():
            raise ValueError(
                f"stories are told by a TinyStoryForCausalLM, as AutoModelForCausalLM loads it, not by a "
                f"{type(self.model).__name__}"
            )
        mine = (self._preprocess_params, self._forward_params, self._postprocess_params)
        of_request, of_decoder, of_result = (
            mine | new for mine, new in zip(mine, self._sanitize_parameters(**kwargs), strict=True)
        )
        if of_request.get("seed") is None:
            of_request["seed"] = random.randrange(SEEDS)
        return of_request, of_decoder, of_result

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if unknown := sorted(set(kwargs) - {*WISHES, *SETTINGS}):
            raise ValueError(f"unknown argument {unknown[0]!r}; accepted: {sorted({*TEXTS, *WISHES, *SETTINGS})}")
        # None counts as not given, save where it is a wish.
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name in ("end", "length")}
        for name, least in (("num_stories", 1), ("num_candidates", 1), ("seed", 0)):
            if name in kwargs:
                kwargs[name] = whole_number(name, kwargs[name], least)
        of_decoder = {"precision": kwargs.pop("precision")} if "precision" in kwargs else {}
        if of_decoder and of_decoder["precision"] not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {of_decoder['precision']!r}")
        of_result: dict[str, Any] = dict(of_decoder)
        if "num_candidates" in kwargs:
            of_decoder["drafts"] = kwargs["num_candidates"]
        of_result |= {name: kwargs[name] for name in ("num_stories", "num_candidates") if name in kwargs}
        if "details" in kwargs:
            of_result["details"] = yes_or_no("details", kwargs.pop("details"))
        return kwargs, of_decoder, of_result

    def get_iterator(
        self,
        inputs: Iterable[Mapping[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """The results in the order of the inputs; what a list asks for is looked at before the first story."""

        def requests() -> Iterator[StoryRequest]:
            for number, one in enumerate(inputs):
                try:
                    yield from self.preprocess(one, number, **preprocess_params)
                except ValueError as problem:
                    raise ValueError(f"story {number} (counted from 0): {problem}") from problem

        waiting = iter(list(requests())) if isinstance(inputs, list) else requests()
        drafts = postprocess_params.get("num_candidates", 1)
        group = postprocess_params.get("num_stories", 1) * drafts
        told: list[Story] = []
        while batch := list(islice(waiting, max(1, batch_size // drafts) * drafts)):
            told += self.forward(batch, **forward_params)
            while len(told) >= group:
                yield self.postprocess(told[:group], **postprocess_params)
                del told[:group]

    def preprocess(
        self,
        inputs: Mapping[str, Any],
        number: int = 0,
        num_stories: int = 1,
        num_candidates: int = 1,
        seed: int = 0,
        **wishes: Any,
    ) -> list[StoryRequest]:
        """The stories to write for one start, all candidates of one story side by side.

        Args:
            inputs: the start and its own wishes; number: starts before it in this call.
        """
        own = {name: value for name, value in inputs.items() if not is_nothing(value)}
        if unknown := sorted(set(map(str, own)) - {*TEXTS, *WISHES, "seed"}):
            raise ValueError(f"unknown wish {unknown[0]!r}; a story takes {sorted({*TEXTS, *WISHES, 'seed'})}")
        texts = [own.pop(name) for name in TEXTS if name in own]
        if len(texts) != 1:
            raise ValueError("give either start or continue_from")
        first = whole_number("seed", own.pop("seed", seed + number * num_stories), 0)
        request = StoryRequest(texts[0], **wishes | own)
        plan(request, vocabulary_of(self.tokenizer, self.model.config.vocab_size), self.model.config)
        return [
            replace(request, seed=first + story + candidate * CANDIDATE_SEEDS)
            for story in range(num_stories)
            for candidate in range(num_candidates)
        ]

    def _forward(self, requests: list[StoryRequest], precision: Precision = "auto", drafts: int = 1) -> list[Story]:
        close = drafts == 1  # else the best of them are closed, in `postprocess`
        written = write_stories(self.model, self.tokenizer, requests, precision, close, drafts)
        stories = {index: story for index, _, story in written}
        return [stories[index] for index in range(len(requests))]

    def postprocess(
        self,
        stories: list[Story],
        num_stories: int = 1,
        num_candidates: int = 1,
        details: bool = False,
        precision: Precision = "auto",
    ) -> Any:
        """The result of one start: the best of each story's candidates."""
        results = []
        for first in range(0, len(stories), num_candidates):
            best, *rejected = self._ranked(stories[first : first + num_candidates], precision)
            results.append(self._result(best) | {"seed": stories[first].request.seed})
            if details:
                others = {story.text: story for story in reversed(rejected) if story.text != best.text}
                lost = [{"story": text, "score": self._score(story)} for text, story in reversed(others.items())]
                results[-1]["details"] = story_details(self.model, self.tokenizer, best) | {"rejected": lost}
        return results if num_stories > 1 else results[0]

    def _ranked(self, candidates: list[Story], precision: Precision) -> list[Story]:
        """The likeliest of some candidates, the best first; only they are closed, where that is still to be done."""
        ranked = sorted(candidates, key=self._score, reverse=True)
        least = max(1, len(candidates) // CLOSED_SHARE)
        if len(candidates) == 1 or not candidates[0].request.planned_end:
            return ranked[:least]
        decoder = open_decoder(self.model, precision)
        vocabulary = vocabulary_of(self.tokenizer, self.model.config.vocab_size)
        best: Story | None = None
        for number, story in enumerate(ranked):
            # Another place, or one more draft, is only tried for what is likely enough to be the best.
            patient = len(candidates) >= PATIENT and (best is None or story.mean_judged > self._score(best))
            if number >= least and not (patient and best and best.closing_cost > CHEAP):
                return sorted(ranked[:number], key=self._score, reverse=True)
            with torch.inference_mode():
                if story.finish_reason == "open":
                    close_story(story, decoder, vocabulary, CLOSING_PLACES if patient else 1)
                elif story.finish_reason == "ending":
                    story.closing_cost = ending_cost(story, decoder, vocabulary)
            best = max(best or story, story, key=self._score)
        return sorted(ranked, key=self._score, reverse=True)

    @staticmethod
    def _score(story: Story) -> float:
        """What candidates are chosen by: one that reached its limit stands behind all that ended, and one that did not
        come to its ending behind all that did."""
        cut_off = 1000.0 if story.finish_reason == "length" or story.misses_ending else 0.0
        closing = CLOSING_SHARE * story.closing_cost if story.request.planned_end else 0.0
        return story.mean_judged - closing - cut_off

    @classmethod
    def _result(cls, story: Story) -> dict[str, Any]:
        return {
            "story": story.text,
            "start": story.request.start,
            "end": story.request.end,
            "finish_reason": story.finish_reason,
            "num_words": story.num_words,
            "num_tokens": len(story.ids),
            "num_searches": story.searches,
            "log_probability": story.mean_log_probability,
            "score": cls._score(story),
            "seed": story.request.seed,
        }


def _inputs(start: Any, continue_from: Any) -> Any:
    """One start as a mapping, many as a list or an iterator of mappings.

    Raises:
        ValueError: neither or both are given, or an empty list.
    """
    if (start is None) == (continue_from is None):
        both = ", not both; an ending is given by its name, end=..." if start is not None else ""
        raise ValueError(f"give either start or continue_from{both}")
    name, given = ("start", start) if continue_from is None else ("continue_from", continue_from)
    if hasattr(given, "iterrows"):  # a data frame gives its columns' names one by one, not its rows
        given = given.to_dict("records")
    given = _row(given)
    if isinstance(given, (str, bytes, Mapping)) or not (hasattr(given, "__iter__") or hasattr(given, "__getitem__")):
        return _mapping(name, given)
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError(f"{name} is an empty list; give at least one")
        return [_mapping(name, one) for one in given]
    # A data set of PyTorch has no iterator of its own.
    ones = given if hasattr(given, "__iter__") else (given[index] for index in range(len(given)))
    return (_mapping(name, one) for one in ones)


def _mapping(name: str, one: Any) -> Mapping[str, Any]:
    one = _row(one)
    return one if isinstance(one, Mapping) else {name: one}


def _row(given: Any) -> Any:
    """A row of a data frame, which is a pandas Series, as a mapping; anything else as it is."""
    is_row = hasattr(given, "to_frame") and hasattr(given, "keys") and not {*TEXTS}.isdisjoint(given.keys())
    return given.to_dict() if is_row else given


# A model in memory is told with as well: `pipeline("story-generation", model=model, tokenizer=tokenizer)`. Where the
# code of several copies is loaded, the last one tells; registering over another would warn.
PIPELINE_REGISTRY.supported_tasks.pop("story-generation", None)
PIPELINE_REGISTRY.register_pipeline(
    "story-generation", StoryGenerationPipeline, pt_model=AutoModelForCausalLM, type="text"
)
