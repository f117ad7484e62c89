"""A story to keep: as text, Markdown, a page to print, a PDF, and a picture.

What a reader typed is text in every one of them, never markup.
"""

import io
import logging
import re
from bisect import bisect_right
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from fontTools.ttLib import TTFont
from fpdf import FPDF
from PIL import Image, ImageDraw, ImageFont
from tale import Tale

logging.getLogger("fpdf").setLevel(logging.ERROR)  # its warnings name the reader's letters that the font lacks
FONTS = Path(str(files("fontpkg_crimson_text"))) / "files"
REGULAR, BOLD = FONTS / "CrimsonText-Regular.ttf", FONTS / "CrimsonText-SemiBold.ttf"
PAPER, INK, ACCENT, SOFT = (253, 248, 240), (46, 37, 28), (163, 68, 32), (226, 208, 180)
LINE = "Tiny Story Generator"
MOST_LETTERS = 300  # in a line of a picture
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$&:])")
PRINTED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>
body {{ margin: 3rem auto; max-width: 34rem; padding: 0 1.5rem; color: #2e251c; background: #fffdf8;
  font: 1.25rem/1.7 "Source Serif 4", Georgia, serif; hyphens: auto; overflow-wrap: anywhere; }}
p {{ margin: 0; }} p + p {{ text-indent: 1.4em; }}
p:first-of-type::first-letter {{ float: left; font-size: 3.5em; line-height: .8; padding: .08em .09em 0 0;
  color: #a34420; }}
footer {{ margin-top: 3rem; font-size: .85rem; text-align: center; color: #65563f; }}
@page {{ margin: 25mm; }}
@media print {{ body {{ margin: 0 auto; background: none; }} p {{ orphans: 3; widows: 3; }} }}
</style></head><body><main>{paragraphs}</main><footer>{line}</footer></body></html>
"""


def file_name(tale: Tale, ending: str) -> str:
    """From the first words, with plain letters and digits only."""
    words = re.findall(r"[a-z0-9]+", tale.text.lower())[:5]
    return "-".join(words or ["story"])[:60] + ending


def paragraphs(tale: Tale) -> list[str]:
    return [" ".join(part.split()) for part in tale.text.split("\n") if part.strip()]


def as_text(tale: Tale) -> bytes:
    return "\n\n".join(paragraphs(tale)).encode() + b"\n"


def as_markdown(tale: Tale) -> bytes:
    """Every sign that Markdown could take for its own stands behind a backslash."""
    body = "\n\n".join(MARKDOWN.sub(r"\\\1", part) for part in paragraphs(tale))
    return f"{body}\n\n---\n\n*{LINE}, {tale.model} model, seed {tale.steps[-1].seed}*\n".encode()


def as_page(tale: Tale) -> bytes:
    """A page of its own, set for paper."""
    body = "".join(f"<p>{escape(part)}</p>" for part in paragraphs(tale))
    return PRINTED.format(title=escape(tale.title), paragraphs=body, line=LINE).encode()


@cache
def _letters() -> frozenset[int]:
    with TTFont(REGULAR) as font:
        return frozenset(font.getBestCmap())


def lacking(tale: Tale) -> str:
    """The letters of a story that the font of PDF and picture does not have."""
    return "".join(sorted({letter for letter in tale.text if not letter.isspace() and ord(letter) not in _letters()}))


def as_pdf(tale: Tale) -> bytes:
    pdf = FPDF(format=(148, 210))
    pdf.set_title(tale.title)
    pdf.set_creator(LINE)
    pdf.set_lang("en")
    pdf.set_auto_page_break(True, margin=20)
    pdf.add_font("Serif", fname=REGULAR)
    pdf.add_font("Serif", "B", fname=BOLD)
    pdf.set_margins(20, 22)
    pdf.set_page_background(PAPER)
    pdf.add_page()
    initial, parts = _initial(tale)
    pdf.set_text_color(*ACCENT)
    pdf.set_font("Serif", "B", 30)
    pdf.write(11, initial)
    pdf.set_text_color(*INK)
    pdf.set_font("Serif", "", 13.5)
    for number, part in enumerate(parts):
        if number:
            pdf.set_x(pdf.l_margin + 7)
        pdf.write(7.4, part)
        pdf.ln(7.4)
    pdf.set_auto_page_break(False)  # the line at the foot stands below where a page breaks
    pdf.set_y(-24)
    pdf.set_font_size(8.5)
    pdf.set_text_color(*ACCENT)
    pdf.cell(0, 5, LINE, align="C")
    return bytes(pdf.output())


def as_picture(tale: Tale) -> bytes:
    """A card 1200 points wide and 1500 high, or higher for a long story, as PNG."""
    width, margin, size = 1200, 130, 48 if tale.num_words < 150 else 38
    font, large, small = (
        ImageFont.truetype(face, points) for face, points in ((REGULAR, size), (BOLD, round(size * 3.2)), (REGULAR, 30))
    )
    leading = round(size * 1.55)
    initial, parts = _initial(tale)
    beside = round(large.getlength(initial)) + 14
    lines = _lines(parts, font, width - 2 * margin, beside, indent=size)
    body = leading * len(lines)
    height = max(1500, 2 * margin + body + 140)
    card = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(card)
    for inset in (40, 52):
        draw.rounded_rectangle((inset, inset, width - inset, height - inset), 28, outline=SOFT, width=2)
    top = (height - body - 60) // 2
    # The capital stands on the second line and is as high as both.
    draw.text((margin, top + leading + size), initial, font=large, fill=ACCENT, anchor="ls")
    for number, (left, line) in enumerate(lines):
        draw.text((margin + left, top + number * leading + size), line, font=font, fill=INK, anchor="ls")
    draw.text((width // 2, height - 92), LINE, font=small, fill=ACCENT, anchor="mm")
    buffer = io.BytesIO()
    card.quantize(64).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _initial(tale: Tale) -> tuple[str, list[str]]:
    """The first letter with the quotes before it, and the paragraphs without it."""
    first, *others = paragraphs(tale)
    found = re.match(r"\W{0,2}\w|.", first)
    initial = found.group() if found else ""
    return initial, [first[len(initial) :], *others]


def _lines(
    parts: list[str], font: ImageFont.FreeTypeFont, width: int, beside: int, indent: int
) -> list[tuple[int, str]]:
    """The paragraphs' lines, each with the room to its left; the first two stand beside the capital."""
    lines: list[tuple[int, str]] = []
    for number, part in enumerate(parts):
        line, left = "", indent if number else 0
        for word in part.split(" "):
            while word:
                left = max(left, beside if len(lines) < 2 else 0)
                room = width - left
                # A word that no line could hold is broken; no line holds MOST_LETTERS.
                fits = bisect_right(
                    range(1, min(len(word), MOST_LETTERS) + 1), room, key=lambda n: font.getlength(word[:n])
                )
                fits = max(1, fits)
                longer = f"{line} {word[:fits]}" if line else word[:fits]
                if line and font.getlength(longer) > room:
                    lines.append((left, line))
                    line, left = "", 0
                else:
                    line, word = longer, word[fits:]
        lines.append((max(left, beside if len(lines) < 2 else 0), line))
    return lines
