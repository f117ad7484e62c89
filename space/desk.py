"""One reader's desk: the story that lies on it, the shelf beside it, and what is asked for but not told yet.

A click anywhere on a Streamlit page stops the script that is running and starts it anew. So what is asked for lies on
the desk until it is told, and what was told is laid there by plain assignments, between which Streamlit cannot step
in: a click while a story is being told neither loses it nor the wish for it.
"""

import re
import secrets
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine import Engine, EngineError, chosen_model
from gentle import unfit
from share import Shared, from_link
from shelf import Shelf, today
from tale import MAX_STEPS, Step, Tale, TaleError, sentences
from wishes import SEEDS, Wishes

TRIES = 3  # times a story is drawn until it has no word that is unfit for children
NUM_DRAFTS = 8  # usually: as many as fit into half a second of one thread
FEW_DRAFTS = 4  # while one reader is in line; with more of them, each gets one
MANY = 20  # stories whose details stay on the desk
PLAIN_WORDS = (
    (r"start must hold", "it needs a word or more to start with"),
    (r"end must hold", "its ending needs at least one word; an empty field lets the model end where it likes"),
    (r"include takes up to (\d+) words", r"up to \1 words can be included, each with a letter"),
    (r"max_words is (\d+), but (.*) alone need (\d+)", r"\2 alone need \3 words, and the longest length is \1"),
    (r"start( has more than \d+ characters)", r"its start\1"),
    (r"end( has more than \d+ characters)", r"its ending\1"),
    (r"include has( a word of more than \d+ characters)", r"what it shall include has\1"),
    (r"the start has \d+ tokens", "its start is too long; the model reads and writes some 700 words at most"),
)  # the pipeline's messages, and what a reader is told
TYPED_UNFIT = "Some of these words do not belong in a children’s story. Please choose others."
LINK_UNFIT = "This link asks for words that do not belong in a children’s story."
TOLD_UNFIT = "The stories that came had words that do not belong in a children’s story. Please ask again."

OnPlace = Callable[[int], None]  # shows a reader their place in line, and raises when they have left


@dataclass(frozen=True)
class Asked:
    """Steps to tell, after those that are told already."""

    told: str
    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    model: str
    shared: Shared | None = None


@dataclass
class Desk:
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    tale: Tale | None = None
    previous: str | None = None  # key of the tale before it
    fresh: bool = False  # it has just been told
    chosen: int | None = None  # sentence of the tale from which it shall be told otherwise
    shelf: Shelf = field(default_factory=Shelf)
    asked: Asked | None = None
    problem: str | None = None
    below: bool = False  # it was met under the tale, not in the first fields, and is said there
    news: str | None = None
    known: dict[str, dict[str, Any]] = field(default_factory=dict)  # details, by key of the tale
    link: str | None = None  # the shared link that was opened
    opened: int = 0  # files of saved shelves
    shelf_problem: str | None = None  # with a file that was opened

    def ask(self, asked: Asked, below: bool = False) -> None:
        self.asked, self.problem, self.below, self.news = asked, None, below, None

    def refuse(self, problem: str, below: bool = False) -> None:
        self.asked, self.problem, self.below, self.news = None, problem, below, None

    def open(self, tale: Tale, fresh: bool = False) -> None:
        if self.tale and self.tale.key != tale.key:
            self.previous = self.tale.key
        self.tale, self.fresh, self.chosen, self.problem, self.news = tale, fresh, None, None, None

    def details(self, engine: Engine, tale: Tale, on_place: OnPlace) -> dict[str, Any] | str | None:
        """How sure the model was of each word of the tale's last step, and the drafts that lost, told again for it;
        None if it came out otherwise; or, if it cannot be told now, what a reader is told."""
        if tale.key not in self.known:
            try:
                result = _tell(engine, tale.steps[-1], tale.text, tale.model, on_place, details=True)
            except (EngineError, ValueError) as problem:
                return in_page_words(problem)
            lost = [draft for draft in result["details"]["rejected"] if not unfit(draft["story"])]
            told = result["details"] | {"score": result["score"], "rejected": lost}
            self.known[tale.key] = told if result["story"] == tale.text else {}
            _forget(self.known)
        return self.known[tale.key] or None


def desk_of(state: MutableMapping[Any, Any]) -> Desk:
    if "desk" not in state:
        state["desk"] = Desk()
    return state["desk"]


def ask_first(desk: Desk, wishes: Wishes) -> None:
    desk.ask(Asked("", (), (wishes.step,), wishes.model))


def ask_again(desk: Desk) -> None:
    """Another version: the same wishes, another seed."""
    tale = desk.tale
    assert tale
    last = tale.steps[-1]
    drafts = max(NUM_DRAFTS, last.num_candidates)  # it may have had few, in a long line
    step = replace(last, seed=secrets.randbelow(SEEDS), num_candidates=drafts)
    told = tale.text[: step.keep] if step.keep is not None else ""
    desk.ask(Asked(told, tale.steps[:-1], (step,), tale.model), below=True)


def ask_for_more(desk: Desk, end: str, words: int) -> None:
    """The tale continued to a new ending."""
    _go_on(desk, desk.tale.text if desk.tale else "", end.strip() or None, words)


def ask_what_if(desk: Desk, sentence: int, end: str) -> None:
    """The tale told otherwise after one of its sentences, as many words as it had there."""
    tale = desk.tale
    assert tale
    kept = tale.text[: sentences(tale.text)[sentence][1]]
    _go_on(desk, kept, end.strip() or tale.end, max(40, tale.num_words - len(kept.split())))


def _go_on(desk: Desk, kept: str, end: str | None, words: int) -> None:
    tale = desk.tale
    assert tale
    if len(tale.steps) == MAX_STEPS:
        desk.refuse(
            f"A story is told in {MAX_STEPS} parts at most, and this one has them. A new one can begin.", below=True
        )
        return
    last = tale.steps[-1]
    try:
        step = Step(
            start=None, keep=len(kept), end=end, max_words=len(kept.split()) + words, seed=secrets.randbelow(SEEDS),
            temperature=last.temperature, top_p=last.top_p, num_candidates=max(NUM_DRAFTS, last.num_candidates),
        )  # fmt: skip
    except TaleError as problem:
        desk.refuse(in_page_words(problem), below=True)
        return
    desk.ask(Asked(kept, tale.steps, (step,), tale.model), below=True)


def ask_for_shared(desk: Desk, query: MutableMapping[str, Any]) -> None:
    """A story that somebody shared, once for each link that is opened."""
    link = query.get("story")
    if not link or link == desk.link:
        return
    desk.link = link
    try:
        shared = from_link(link)
    except TaleError as problem:
        desk.refuse(f"This link cannot be opened: {problem}.")
        return
    desk.ask(Asked("", (), shared.steps, shared.model, shared=shared))


def tell_what_is_asked(desk: Desk, engine: Engine, on_place: OnPlace) -> None:
    """Tell it, lay it on the desk and put it on the shelf; or say why not."""
    asked = desk.asked
    if not asked:
        return
    try:
        tale = _tell_asked(engine, asked, on_place)
    except (EngineError, ValueError) as problem:
        desk.asked, desk.problem = None, in_page_words(problem)
        return
    desk.asked = None
    if isinstance(tale, str):
        desk.problem = tale
        return
    desk.open(tale, fresh=True)
    desk.shelf.add(tale)
    if asked.shared and asked.shared.checksum == tale.key:
        desk.news = "Somebody shared this story with you. It came out just as it was."
    elif asked.shared:
        desk.news = (
            "Somebody shared this story with you, but here it came out differently: this page runs another version of "
            "the model, or on another machine."
        )


def in_page_words(problem: EngineError | ValueError) -> str:
    """The storyteller's message as it is, or the pipeline's as it is put to somebody who fills in a field."""
    message = str(problem)
    if isinstance(problem, EngineError):
        return message
    matches = ((re.match(pattern, message, re.DOTALL), words) for pattern, words in PLAIN_WORDS)
    plain = next((found.expand(words) for found, words in matches if found), message)
    return f"This story cannot be told: {plain}."


def _tell_asked(engine: Engine, asked: Asked, on_place: OnPlace) -> Tale | str:
    """The tale; or, if a wish is unfit for children, or all that came of it, what a reader is told."""
    if any(unfit(step.start, step.end, *step.include) for step in asked.steps):
        return LINK_UNFIT if asked.shared else TYPED_UNFIT
    told, steps, result = asked.told, asked.before, {}
    seconds = 0.0
    for step in asked.steps:
        if not asked.shared and engine.readers:  # fewer drafts for all are better than a long line
            fewer = FEW_DRAFTS if engine.readers == 1 else 1
            step = replace(step, num_candidates=min(step.num_candidates, fewer))
        for number in range(1 if asked.shared else TRIES):
            step = replace(step, seed=(step.seed + 1) % SEEDS if number else step.seed)
            begun = time.monotonic()
            result = _tell(engine, step, told, asked.model, on_place)
            seconds += time.monotonic() - begun
            if not unfit(result["story"]):
                break
        else:
            return TOLD_UNFIT
        told, steps = result["story"], (*steps, step)
    return Tale(
        text=told, steps=steps, model=asked.model, revision=chosen_model()[1] or "",
        finish_reason=result["finish_reason"], seconds=round(seconds, 2), told=today(),
    )  # fmt: skip


def _tell(
    engine: Engine, step: Step, told: str, model: str, on_place: OnPlace, details: bool = False
) -> dict[str, Any]:
    wishes = step.wishes(told) | ({"details": True} if details else {})
    return engine.tell(wishes, on_place, "classic" if model == "classic" else "")


def _forget(known: dict[str, Any]) -> None:
    while len(known) > MANY:
        del known[next(iter(known))]
