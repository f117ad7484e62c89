"""How sure the model was of each word of a story, what else it might have written, and where each word came from."""

import math
from itertools import accumulate
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .decoder_tiny_story import without_dropout
from .generation_tiny_story import plan
from .request_tiny_story import count_words
from .story_tiny_story import Story, vocabulary_of

ALTERNATIVES = 5  # likeliest tokens told for each place

Origin = Literal["given", "sampled", "planned", "backwards", "named"]


@torch.inference_mode()
def story_details(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, story: Story) -> dict[str, Any]:
    """One forward pass of the model, as it was loaded, over a finished story and the control prefix it was told with.

    Probabilities are the model's own: before temperature, nucleus and the guard against loops, and before the rules of
    the story contract, which forbid a token now and then.

    Returns:
        {"tokens", "words"}: each token or word is {"text", "probability", "origin", "alternatives"}; their texts joined
        are the story. The origin is "given" (the reader's start), "sampled", "planned" (the ending asked for, which the
        model came to by itself), "backwards" (a closing or a clause written backwards from the reader's words) or
        "named" (a fixed sentence that names the ending). Alternatives are the likeliest tokens at the place, [text,
        probability] each; a word has those of its first token, and the probability of its tokens together.
    """
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    prefix, _, _ = plan(story.request, vocabulary, model.config)
    prompt = [*prefix, tokenizer.bos_token_id]
    ids = torch.tensor([[*prompt, *story.ids[:-1]]], device=model.device)
    with without_dropout(model):
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 :]  # (tokens of the story, vocab)
    log_probabilities = logits.float().log_softmax(-1).cpu()
    own = log_probabilities.gather(1, torch.tensor(story.ids, device="cpu")[:, None])[:, 0].tolist()
    best = log_probabilities.topk(ALTERNATIVES)
    texts = _token_texts(story.ids, tokenizer)
    ends = list(accumulate(map(len, texts)))
    tokens = []
    for index, (text, end) in enumerate(zip(texts, ends, strict=True)):
        pairs = zip(best.indices[index].tolist(), best.values[index].exp().tolist(), strict=True)
        alternatives = [[vocabulary.pieces[token], probability] for token, probability in pairs]
        origin = _origin(story, index, end)
        tokens.append(
            {"text": text, "probability": math.exp(own[index]), "origin": origin, "alternatives": alternatives}
        )
    return {"tokens": tokens, "words": _words(tokens)}


def _token_texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds; one that leaves a character unfinished adds nothing, the one that ends it all."""
    texts, told = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = text if end == len(ids) else text.rstrip("\ufffd")
        whole = max(whole, told, key=len)
        texts.append(whole[len(told) :])
        told = whole
    return texts


def _origin(story: Story, index: int, end: int) -> Origin:
    """Where token `index` came from; `end` is the length of the text with it."""
    if index < story.num_given:
        return "given"
    for begin, beyond, how in story.brought:
        if begin <= index < beyond:
            return cast(Origin, how)
    if story.finish_reason == "ending" and story.request.planned_end:
        after = story.num_words - count_words(story.text[:end])  # words that begin after this token
        return "planned" if after < story.ending_words else "sampled"
    return "sampled"


def _words(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens put together to words, each with the blanks before it and the punctuation after it."""
    words: list[dict[str, Any]] = []
    for token in tokens:
        begins = token["text"][:1].isspace() or not words or words[-1]["text"][-1:].isspace()
        if begins and not (words and not words[-1]["text"].strip()):
            words.append(dict(token))
        else:
            previous = words[-1]
            if not previous["text"].strip():  # blanks alone: the word itself says what else might have stood here
                previous["alternatives"], previous["origin"] = token["alternatives"], token["origin"]
            previous["text"] += token["text"]
            previous["probability"] *= token["probability"]
    return words
