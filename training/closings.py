"""Sentences written backwards: how the model learns to close a story on a word it is given.

A sentence that must end on a word is best written from that word. So in a share of the stories some sentences stand
turned round, token by token, in their place:

    ... She ran fast. <close> . home went and smiled She <begin> Her mum ... happy.</sos>

and the last sentence takes the end of the story with it: `<close> </sos> . happy were They <begin>`. What stands
before `<close>` is the story so far, what is forced after it is the ending, and `<begin>` says where the sentence
starts, so decoding (modeling/closing_tiny_story.py) asks for just what was learnt here. Some sentences are only turned
round from a word on, for a story that is closed within a sentence; some only up to a word, for a clause that must end
on a word and goes on, and so that words which never end a sentence are learnt too. `<close>` itself is never a target:
the reader, not the model, says when (training/data.py).

Backward language models that grow a sentence from a word it must hold: Mou et al. 2015 (arXiv 1512.06612). That a model
learns to fill in beside its left-to-right ability: Bavarian et al. 2022 (arXiv 2207.14255).
"""

import random
import re
from collections.abc import Callable
from itertools import pairwise

from modeling.control_tiny_story import BEGIN, CLOSE, SPECIAL_TOKENS
from training.wishes import sentence_starts

BACKWARD_SHARE, LAST_BACKWARD_SHARE = 0.35, 0.7  # of the sentences of a story with closings; of its last one
FROM_A_WORD_SHARE, TO_A_WORD_SHARE = 0.2, 0.3  # of these: turned round from a word on, or up to a word
WORD_BREAK = re.compile(r"(?<=[a-z]) (?=[A-Za-z])")
CLOSE_ID, BEGIN_ID = SPECIAL_TOKENS.index(CLOSE), SPECIAL_TOKENS.index(BEGIN)


def backwards(ids: list[int]) -> list[int]:
    """Tokens turned round, with the tokens that say so."""
    return [CLOSE_ID, *reversed(ids), BEGIN_ID]


def draw_closings(text: str, encode: Callable[[str], list[int]], end: list[int], rng: random.Random) -> list[int]:
    """Token ids of a story, some of its sentences turned round.

    Args:
        encode: text to token ids, without special tokens.
        end: `[</sos>]`; or nothing if the text does not end where its story ends, and its last sentence stays as it is.
    """
    # Cut before the blank or line break, where the tokenizer cuts too: the pieces' tokens are the text's tokens.
    cuts = [0, *(len(text[:start].rstrip()) for start in sentence_starts(text)), len(text)]
    ids: list[int] = []
    for start, stop in pairwise(cuts):
        is_last = stop == len(text)
        sentence = encode(text[start:stop])
        if is_last:
            sentence += end
        if (is_last and not end) or rng.random() >= (LAST_BACKWARD_SHARE if is_last else BACKWARD_SHARE):
            ids += sentence
            continue
        kind = rng.random()
        blanks = [match.start() for match in WORD_BREAK.finditer(text, start + 1, stop)]
        at = len(encode(text[start : rng.choice(blanks)])) if blanks else 0
        if at and kind < FROM_A_WORD_SHARE:
            ids += sentence[:at] + backwards(sentence[at:])
        elif at and kind < FROM_A_WORD_SHARE + TO_A_WORD_SHARE:
            ids += backwards(sentence[:at]) + sentence[at:]
        else:
            ids += backwards(sentence)
    return ids
