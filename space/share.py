"""A link that tells a story again: its settings and seeds, and a checksum by which the page sees if it came out so."""

import base64
import binascii
import json
import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from tale import MODELS, Step, Tale, TaleError, parse_steps

LONGEST = 6000  # characters of a link's value
LARGEST = 40_000  # bytes that it may unfold to
DEFAULTS: dict[str, Any] = {
    "start": None, "keep": None, "end": None, "include": [], "length": None, "stop_at_first": False,
    "temperature": 0.5, "top_p": 0.95, "num_candidates": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """What a link says of a story."""

    steps: tuple[Step, ...]
    model: str
    revision: str
    checksum: str


def to_link(tale: Tale) -> str:
    """The value of a link's `story`: JSON without what is as usual, deflated, in the letters that links may hold."""
    steps = [asdict(step) | {"include": list(step.include)} for step in tale.steps]
    short = [{k: v for k, v in step.items() if k not in DEFAULTS or v != DEFAULTS[k]} for step in steps]
    content = {"steps": short, "model": tale.model, "revision": tale.revision, "checksum": tale.key}
    packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def from_link(value: str) -> Shared:
    """
    Raises:
        TaleError: the value is not, to the letter, one that `to_link` could have made.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value) or len(value) > LONGEST:
        raise TaleError("the link is broken")
    try:
        packed = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        unfolding = zlib.decompressobj()
        content = json.loads(unfolding.decompress(packed, LARGEST))
        if not unfolding.eof or unfolding.unused_data:
            raise TaleError("the link is cut or too long")
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise TaleError("the link is broken") from error
    if not isinstance(content, dict) or set(content) != {"steps", "model", "revision", "checksum"}:
        raise TaleError("the link has other parts than a story's")
    model, revision, checksum = content["model"], content["revision"], content["checksum"]
    if model not in MODELS or not isinstance(revision, str) or len(revision) > 100:
        raise TaleError("the link names a model that is not known here")
    if not isinstance(checksum, str) or not re.fullmatch(r"[0-9a-f]{10}", checksum):
        raise TaleError("the link has no checksum")
    if not isinstance(content["steps"], list) or not all(isinstance(step, dict) for step in content["steps"]):
        raise TaleError("the link tells no story")
    return Shared(parse_steps([DEFAULTS | step for step in content["steps"]]), model, revision, checksum)
