"""Many readers at once: real websocket clients open the page, ask for stories, read, ask again, and some leave.

    python -m benchmarks.page_load [--readers 1 8 30] [--minutes 5] [--pause 5]

Each client speaks Streamlit's own protocol to the page that `space/serve.py` serves: it fills in the two fields, clicks
"Tell the story" and waits for the story's text, as a browser would show it. Start and ending are each time other ones,
so that a story that reached the wrong reader is seen. The last number of readers stays for --minutes, those before it
for a fifth of that. Exit status 1: an error, a story of somebody else, a broken contract, or memory that grows.

The clients take part of the same machine's time, as they do not on the Hub.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import unescape
from pathlib import Path

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Common_pb2 import DoubleArray
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from training.cli import Parser, one_line_errors, positive

SPACE = Path(__file__).resolve().parent.parent / "space"
START, END, LENGTH, TELL = "The story starts with", "and ends with", "Longest length, in words", "Tell the story"
NAMES = ("Tom", "Lily", "Ben", "Mia", "Sue", "Max", "Anna", "Tim")
THINGS = ("boat", "kite", "hat", "drum", "cake", "ball", "lamp", "shoe", "book", "bell")
ENDS = ("home", "happy", "friends", "moon", "sleep", "smile", "garden", "sea", "together", "stars")
MAX_WORDS = 120
TIMEOUT = 60.0  # seconds: a story later than that is an error
WARM_UP = 0.2  # of the time
GROWTH = 1.10  # of the memory after it, at most


@dataclass
class Report:
    """What happened while so many readers were here."""

    readers: int
    seconds: list[float] = field(default_factory=list)  # from each click to its story
    left: int = 0
    faults: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB of the page's and the storyteller's processes, each second
    processor: tuple[float, float] = (0.0, 0.0)  # seconds of the page's process and of the storyteller's, each story

    def percentile(self, share: float) -> float:
        """Seconds that so large a share of the stories took at most; nan without stories."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else float("nan")

    def growth(self) -> float:
        """Memory of the last fifth of the time over that of the fifth after warming up."""
        part = max(1, round(WARM_UP * len(self.memory)))
        return statistics.median(self.memory[-part:]) / statistics.median(self.memory[part : 2 * part] or self.memory)


class Reader:
    """One browser tab.

    Raises, in all methods:
        ValueError: the page shows an error, or lacks what a reader needs.
        TimeoutError, websockets.ConnectionClosed: the page does not answer.
    """

    def __init__(self, address: str):
        self.address = address.replace("http", "ws", 1) + "/_stcore/stream"
        self.socket: ClientConnection | None = None
        self.widgets: dict[str, str] = {}  # ids by label
        self.script = ""
        self.story = ""
        self.told = 0.0  # when the story came

    async def open(self) -> None:
        """Connect, and read the empty page."""
        self.socket = await connect(
            self.address, subprotocols=[Subprotocol("streamlit")], max_size=None, open_timeout=TIMEOUT
        )
        await self._run([])
        if missing := {START, END, LENGTH, TELL} - set(self.widgets):
            raise ValueError(f"the page lacks {', '.join(sorted(missing))}")

    async def leave(self) -> None:
        """Close the tab."""
        if self.socket:
            await self.socket.close()

    async def click(self, start: str, end: str) -> None:
        """Fill in the fields and click; do not wait."""
        states = [
            WidgetState(id=self.widgets[START], string_value=start),
            WidgetState(id=self.widgets[END], string_value=end),
            WidgetState(id=self.widgets[LENGTH], double_array_value=DoubleArray(data=[MAX_WORDS])),
            WidgetState(id=self.widgets[TELL], trigger_value=True),
        ]
        message = BackMsg()
        message.rerun_script.page_script_hash = self.script
        message.rerun_script.widget_states.widgets.extend(states)
        assert self.socket
        await self.socket.send(message.SerializeToString())

    async def ask(self, start: str, end: str) -> float:
        """The seconds from the click to the story, which is then `self.story`."""
        self.story, began = "", time.perf_counter()
        await self.click(start, end)
        await self._until_finished()
        if not self.story:
            raise ValueError("the page showed no story")
        return self.told - began

    async def _run(self, states: list[WidgetState]) -> None:
        message = BackMsg()
        message.rerun_script.widget_states.widgets.extend(states)
        assert self.socket
        await self.socket.send(message.SerializeToString())
        await self._until_finished()

    async def _until_finished(self) -> None:
        assert self.socket
        async with asyncio.timeout(TIMEOUT):
            async for data in self.socket:
                assert isinstance(data, bytes)
                message = ForwardMsg.FromString(data)
                kind = message.WhichOneof("type")
                if kind == "new_session":
                    self.script = message.new_session.page_script_hash
                elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
                    self._see(message.delta.new_element)
                elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                    return
        raise ValueError("the page hung up")

    def _see(self, element: Element) -> None:
        kind = element.WhichOneof("type")
        if kind == "exception":
            raise ValueError(f"the page shows an exception: {element.exception.message}")
        if kind == "alert" or (kind == "html" and 'role="alert"' in element.html.body):
            raise ValueError(f"the page says: {element.alert.body or element.html.body}")
        if kind in ("text_input", "slider", "button"):
            widget = getattr(element, kind)
            self.widgets[widget.label] = widget.id
        elif story := story_of(element):
            self.story, self.told = story, time.perf_counter()


def story_of(element: Element) -> str:
    """The text of a whole story that an element shows, or ""."""
    kind = element.WhichOneof("type")
    if kind == "html" and 'data-testid="story"' in element.html.body and 'class="pen"' not in element.html.body:
        return unescape(re.sub(r"<[^>]+>", "", element.html.body.replace("</p>", "\n")))
    if kind == "bidi_component" and element.bidi_component.json:
        data = json.loads(element.bidi_component.json)
        if isinstance(data, dict) and data.get("testid") == "story":
            return "\n".join(
                "".join(text for sentence in paragraph for text, _ in sentence["parts"])
                for paragraph in data["paragraphs"]
            )
    return ""


def broken(story: str, start: str, end: str) -> str:
    """What a story does not keep to, or ""."""
    words = story.split()
    if not " ".join(words).startswith(start):
        return f"the story of {start!r} begins with {' '.join(words[:6])!r}"
    if words[-1].strip(".,!?\"'”’").lower() != end:
        return f"the story of {start!r} ends with {words[-1]!r}, not {end!r}"
    return f"the story of {start!r} has {len(words)} words" if len(words) > MAX_WORDS else ""


async def read_and_ask(address: str, number: int, until: float, pause: float, leave: float, report: Report) -> None:
    """One reader's visit: ask, read, ask again; now and then close the tab in mid-story and come back."""
    chance, count = random.Random(number), 0
    reader = Reader(address)
    try:
        await reader.open()
        await asyncio.sleep(chance.uniform(0, pause))
        while count == 0 or time.monotonic() < until:
            start = f"{chance.choice(NAMES)} had {number} big {chance.choice(THINGS)}s and {count} more"
            end, count = chance.choice(ENDS), count + 1
            if chance.random() < leave:
                await reader.click(start, end)
                await asyncio.sleep(chance.uniform(0, 0.1))
                await reader.leave()
                report.left += 1
                reader = Reader(address)
                await reader.open()
            else:
                report.seconds.append(await reader.ask(start, end))
                if fault := broken(reader.story, start, end):
                    report.faults.append(fault)
                await asyncio.sleep(chance.uniform(0.5, 1.5) * pause)
    except Exception as problem:
        report.faults.append(f"reader {number}: {type(problem).__name__}: {problem}")
    finally:
        await reader.leave()


async def visit(address: str, server: int, readers: int, seconds: float, pause: float, leave: float) -> Report:
    """So many readers for so many seconds."""
    report, until = Report(readers), time.monotonic() + seconds
    visits = [read_and_ask(address, number, until, pause, leave, report) for number in range(readers)]
    watch = asyncio.create_task(watch_memory(server, report))
    before = processor_seconds(server)
    await asyncio.gather(*visits)
    watch.cancel()
    used = [after - was for after, was in zip(processor_seconds(server), before, strict=True)]
    stories = max(1, len(report.seconds) + report.left)
    report.processor = (used[0] / stories, used[1] / stories)
    return report


def processor_seconds(server: int) -> tuple[float, float]:
    """Of the page's process and of the storyteller's, so far."""
    page = psutil.Process(server)
    times = [process.cpu_times() for process in (page, *page.children())]
    each = [time.user + time.system for time in times]
    return each[0], sum(each[1:])


async def watch_memory(server: int, report: Report) -> None:
    """Note the memory of the page and its storyteller, until cancelled."""
    page = psutil.Process(server)
    while True:
        processes = [page, *page.children(recursive=True)]
        report.memory.append(sum(process.memory_info().rss for process in processes) / 1e6)
        await asyncio.sleep(1)


@contextmanager
def page() -> Iterator[tuple[str, int]]:
    """The page as the Space serves it: its address, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "serve.py", f"--server.port={port}"]
    command += ["--server.address=127.0.0.1", "--server.fileWatcherType=none"]
    server = subprocess.Popen(command, cwd=SPACE, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise OSError("the page's server stopped")
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait()


@one_line_errors
def main() -> None:
    """Measure the page by command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=positive, nargs="+", default=[1, 8, 30])
    parser.add_argument("--minutes", type=float, default=5, help="for the last number of readers")
    parser.add_argument("--pause", type=float, default=5, help="seconds a reader reads, half to one and a half of it")
    parser.add_argument("--leave", type=float, default=0.05, help="share of clicks after which the reader is gone")
    parser.add_argument("--out", type=Path, help="write the reports as JSON, too")
    arguments = parser.parse_args()
    reports = []
    with page() as (address, server):
        print(" readers  stories  left   p50 s   p95 s    most     MB  growth  page s  teller s  faults")
        for readers in arguments.readers:
            seconds = 60 * arguments.minutes * (1 if readers == arguments.readers[-1] else 0.2)
            report = asyncio.run(visit(address, server, readers, seconds, arguments.pause, arguments.leave))
            reports.append(report)
            print(
                f"{readers:8}{len(report.seconds):9}{report.left:6}{report.percentile(0.5):8.2f}"
                f"{report.percentile(0.95):8.2f}{report.percentile(1):8.2f}{report.memory[-1]:7.0f}"
                f"{report.growth():8.2f}{report.processor[0]:8.3f}{report.processor[1]:10.3f}{len(report.faults):8}",
                flush=True,
            )  # fmt: skip
    for report in reports:
        print(*report.faults[:10], sep="\n", end="\n" if report.faults else "")
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(report) for report in reports]) + "\n", encoding="utf-8")
    grown = reports[-1].growth() > GROWTH
    if grown:
        print(f"memory grew to {reports[-1].growth():.2f} of what it was")
    sys.exit(1 if grown or any(report.faults for report in reports) else 0)


if __name__ == "__main__":
    main()
