"""What a reader takes home is the story, letter for letter, and nothing in it works as markup."""

import io
import logging
import sys
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from pypdf import PdfReader

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "space"))
from keep import as_markdown, as_page, as_pdf, as_picture, as_text, file_name, lacking, paragraphs
from tale import Step, Tale

MARKUP = [
    "<script>alert(1)</script>", "![x](https://example.org/x.png)", "[a](javascript:alert(1))", "$x^2$ `code` **b**",
    "# Title", "<b>Tom</b> & Co", "1. one", "---", "https://example.org", "a_b_c ~~d~~ | e", "&lt;i&gt; :smile:",
]  # fmt: skip


def tale(text: str) -> Tale:
    step = Step(start=text.split("\n")[0][:2000], keep=None, end="home", max_words=120, seed=7)
    return Tale(text, (step,), "modern", "", "ending", 0.2, "2026-11-27")


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("markup", MARKUP)
def test_markup_is_text_in_whatever_is_kept(markup: str):
    told = tale(f"{markup} said Tom.\nThey went home.")
    assert as_text(told).decode() == f"{markup} said Tom.\n\nThey went home.\n"
    page, rendered = Seen(), Seen()
    page.feed(as_page(told).decode())
    assert set(page.tags) == {"html", "head", "meta", "title", "style", "body", "main", "p", "footer"}
    assert f"{markup} said Tom." in page.text
    rendered.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(
        as_markdown(told).decode()))  # fmt: skip
    assert set(rendered.tags) == {"p", "hr", "em"}
    assert f"{markup} said Tom." in rendered.text
    text = " ".join(PdfReader(io.BytesIO(as_pdf(told))).pages[0].extract_text().split())
    assert "".join(markup.split()) in "".join(text.split()) and "/" not in file_name(told, "")


@pytest.mark.parametrize(
    "text", ["She.", "x" * 3000, "Zoë 🐉 שלום said hi. They went home.", '"Hi," he said.\n' * 60, "🐉"]
)
def test_any_story_has_a_picture_and_a_pdf(text: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        picture = Image.open(io.BytesIO(as_picture(tale(text))))
        assert picture.width == 1200 and picture.height >= 1500
        pages = PdfReader(io.BytesIO(as_pdf(tale(text)))).pages
    assert len(pages) == 1 or "".join(pages[-1].extract_text().split()) != "TinyStoryGenerator"
    assert len(pages) == 1 or len(text) > 600
    assert not caplog.records  # a warning would name the reader's letters in the log


def test_letters_that_the_font_lacks_are_known():
    assert lacking(tale("Zoë 🐉 and “Жук” went\nhome – at last…")) == "Жку🐉"
    assert lacking(tale("She said, “I’m home.”")) == ""


def test_names_of_files_are_plain():
    assert file_name(tale("../../Ünï <b>Tom</b> went\nhome"), ".txt") == "n-b-tom-b-went.txt"
    assert file_name(tale("שלום"), ".pdf") == "story.pdf"
    assert paragraphs(tale("A b.\n\n\nC.")) == ["A b.", "C."]
