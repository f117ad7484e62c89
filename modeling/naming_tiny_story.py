"""Words that the model knows no use of as the last: somebody learns such a word early, and remembers it at the end.

The model tells the rest of the story around these sentences, which are fixed. A word that nobody has learnt is named at
the end all the same where the best closing on it is hardly English.
"""

import re
from collections import Counter

import numpy as np

from .control_tiny_story import CLOSE, SPECIAL_TOKENS
from .decoder_tiny_story import Decoder
from .request_tiny_story import PUNCTUATION, closes_sentence, count_words
from .sampling_tiny_story import log_softmax
from .story_tiny_story import Story, Vocabulary

NUM_SMALLEST = len(SPECIAL_TOKENS) + 256  # tokens that were not merged from others: special ones and bytes
# Of a word that is commoner elsewhere than before a story's last full stop, by so many nats, the model knows no use
# there. How common it is follows from its rank, for the commonest byte pairs were merged first (Zipf's law, fitted to
# the training stories; it errs by half a nat).
STRANGE = 2.0
ZIPF = (1.45, -1.53)  # slope and nats at rank 1, of words from rank 5 on
LEARNT = (  # early in the story; "who" is the one it is about
    '{who} had just learned a new {kind}: "{word}"',
    'That day, {who} learned a new {kind}: "{word}"',
)
REMEMBERED = (
    'And {who} never forgot the new {kind}: "{word}"',
    'At the end of the day, {who} still remembered the new {kind}: "{word}"',
    'That night, {who} whispered the new {kind} once more: "{word}"',
)
NAMINGS = (  # if nobody has learnt it
    'At the end of the day, {who} learned a new {kind}: "{word}"',
    'That night, {who} learned to spell a new {kind}: "{word}"',
    'And {who} learned a new {kind} that day: "{word}"',
)
# A capital in mid-sentence makes a name; at its beginning (group 1), only one that goes on in small letters, and of a
# word that is known best so.
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+\b|(?:^|(?<=[.!?]\s))([A-Z][a-z]+)(?= [a-z])")
NAME_RANK = 3  # without its capital it stands so many times as far back in the vocabulary, if it does
NO_NAMES = {
    "Mr", "Mrs", "Ms", "Dr", "Mom", "Mum", "Mommy", "Mummy", "Dad", "Daddy", "Grandma", "Grandpa", "Christmas",
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
}  # fmt: skip
HERO = re.compile(
    r"\b(?:[Tt]he|[Aa]) (?:[a-z]+,? ){0,2}(boy|girl|man|woman|lady|king|queen|prince|princess|dog|puppy|cat|kitten|"
    r"bird|duck|owl|bear|bunny|rabbit|mouse|fox|frog|fish|turtle|lion|monkey|elephant|squirrel|horse|pig|cow|dragon|"
    r"fairy|robot|monster|daughter|son|brother|sister|farmer|chef|teacher|baby)\b"
)  # of stories without a name
PARENT = re.compile(r"\b(?:Mom|Mum|Mommy|Mummy|Dad|Daddy|Grandma|Grandpa)\b")


def is_strange(words: str, decoder: Decoder, vocabulary: Vocabulary) -> bool:
    """Whether the model knows no use of a word as a last one: it has several tokens, or stands elsewhere.

    Args:
        decoder: any of the model.
    """
    ids = vocabulary.word_ids(words)
    if len(ids) != 1:
        return len(ids) > 1
    prompt = [vocabulary.bos, SPECIAL_TOKENS.index(CLOSE), vocabulary.eos, *vocabulary.encode(".")]
    logits = decoder.fresh().start([prompt]).numpy()[0]  # (vocab,)
    anywhere = ZIPF[0] * np.log(max(5, ids[0] - NUM_SMALLEST)) + ZIPF[1]  # nats
    return bool(-log_softmax(logits)[ids[0]] - anywhere > STRANGE)


def learner_in(text: str, words: str) -> str:
    """Who learns the word in a text that was told before, and goes on; "" if nobody."""
    typed = re.escape(words.rstrip(PUNCTUATION))
    for form in LEARNT:
        before, after = form.format(who="\0", kind="(?:word|name)", word=rf"{typed}\W?").split("\0")
        if found := re.search(rf"{before}((?:[Tt]he )?\w+){after}", text):
            return re.sub("^The ", "the ", found[1])
    return ""


def about(words: str, story: Story, vocabulary: Vocabulary) -> str:
    """Whom but the word itself the story tells of most often; "" if nobody."""
    typed = words.rstrip(PUNCTUATION).lower()
    found = [match[0] for match in NAME.finditer(story.text) if not match[1] or _is_name(match[0], vocabulary)]
    names = [name for name in found if name.lower() != typed and name not in NO_NAMES]
    names = names or [f"the {hero}" for hero in HERO.findall(story.text) if hero != typed]
    names = names or [parent for parent in PARENT.findall(story.text) if parent.lower() != typed]
    return next((name for name, _ in Counter(names).most_common(1)), "")


def _is_name(word: str, vocabulary: Vocabulary) -> bool:
    """Whether a word that begins a sentence is one that hardly ever stands without its capital."""
    capital, without = vocabulary.encode(f" {word}"), vocabulary.encode(f" {word.lower()}")
    return len(capital) == 1 and (len(without) > 1 or without[0] > NAME_RANK * capital[0])


def namings(words: str, story: Story, who: str, early: bool) -> list[str]:
    """Sentences by which somebody learns or remembers a word, as far as there is room for them; a phrase has none.

    Args:
        who: that is; early: the story goes on after it.
    """
    typed = words.rstrip(PUNCTUATION)
    word = typed + (words[len(typed) :] or ".")
    if count_words(typed) > 1 or '"' in word or not closes_sentence(story.text):
        return []
    kind = "name" if typed[0].isupper() and not typed.isupper() else "word"
    blank = "" if story.text[-1:].isspace() else " "
    forms = LEARNT if early else REMEMBERED if story.learner else NAMINGS
    texts = [form.format(who=who, kind=kind, word=word) for form in forms]
    texts = [blank + text[0].upper() + text[1:] for text in texts]
    room = story.words_left - story.words_needed(story.request.missing(story.text)) * early
    return [text for text in texts if count_words(text) <= room and closes_sentence(text)]
