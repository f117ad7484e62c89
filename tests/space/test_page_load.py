"""The load test in small: a few readers for a few seconds, none of them disappointed."""

import asyncio

import pytest

from benchmarks.page_load import broken, page, visit


@pytest.mark.slow
def test_a_few_readers_each_get_their_own_story():
    with page() as (address, server):
        report = asyncio.run(visit(address, server, readers=3, seconds=8, pause=1, leave=0.3))
    assert report.faults == []
    assert report.seconds and report.left + len(report.seconds) >= 3 and report.memory


def test_what_the_load_test_calls_broken():
    assert broken("Tom had 1 big boat. All went home.", "Tom had 1 big boat", "home") == ""
    assert "begins with" in broken("Ann had 2 big hats and went home.", "Tom had 1 big boat", "home")
    assert "ends with" in broken("Tom had 1 big boat. All went home", "Tom had 1 big boat", "happy")
    assert "words" in broken("Tom " * 200 + "home", "Tom", "home")
