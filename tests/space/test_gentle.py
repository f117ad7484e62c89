"""Words unfit for children are met; the words of real children's stories pass."""

import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "space"))
from gentle import unfit


@pytest.mark.parametrize("text", ["Go to hell!", "You are a b1tch", "SHIT", "the naked king", "f*ck", "a nazi came"])
def test_unfit_words_are_met(text: str):
    assert unfit("Once upon a time", text)


@pytest.mark.parametrize("text", ["Poof! It was gone.", "The class said hello in Essex", "a cock and an ass", None, ""])
def test_harmless_words_pass(text: str | None):
    assert not unfit(text)


def test_stories_for_children_pass(stories: list[str]):
    assert [story for story in stories if unfit(story)] == []
