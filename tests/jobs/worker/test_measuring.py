"""A probe's process finds which number of pictures at once is quickest, and how many there is memory for."""

from __future__ import annotations

from collections import Counter

import pytest

from jobs.worker.measuring import MOST, MOST_UNSEEN, REPEATS, Findings, Tried, read_findings, try_sizes, write_findings
from tests.cards import FakeMemory
from tests.jobs.support import prepare


class FakeCard:
    """A pass for n pictures takes launches + n * each seconds, by a clock that stands still in between.

    With `calls_to_settle` it is recorded after so many calls of one size: then it takes no launches, and no memory.
    """

    def __init__(self, *, launches=0.0, each=1.0, memory=None, calls_to_settle=0):
        self.launches, self.each, self.memory, self.calls_to_settle = launches, each, memory, calls_to_settle
        self.now = 0.0
        self.sizes = []
        self.calls = Counter()

    def run(self, pictures):
        self.calls[pictures] += 1
        replays = 0 < self.calls_to_settle < self.calls[pictures]
        if self.memory is not None:
            self.memory.run(0 if replays else pictures)
        self.sizes.append(pictures)
        self.now += pictures * self.each + (0 if replays else self.launches)

    def sizes_tried(self):
        of_card = {"begin": self.calls.clear, "calls_to_settle": self.calls_to_settle}
        tried, most = try_sizes(self.run, lambda: None, self.memory, lambda: self.now, **of_card)
        return [each.pictures for each in tried], tried, most


def test_sizes_double_until_nothing_is_gained_any_more():
    sizes, tried, most = FakeCard(launches=0.02, each=0.01).sizes_tried()
    assert sizes == [1, 2, 4, 8]
    assert [each.seconds for each in tried] == pytest.approx([0.03, 0.02, 0.015, 0.0125])
    assert most is None


@pytest.mark.parametrize(("memory", "expected"), [(None, MOST_UNSEEN), (FakeMemory(10**6), MOST)])
def test_a_card_that_always_gains_is_tried_up_to_a_limit(memory, expected):
    """Where nobody tells how much memory there is, a login node's must not be filled."""
    sizes, _, _ = FakeCard(launches=0.5, each=0.0001, memory=memory).sizes_tried()
    assert sizes[-1] == expected


def test_a_processor_that_gains_nothing_is_done_after_three_sizes():
    sizes, tried, _ = FakeCard(each=0.01).sizes_tried()
    assert sizes == [1, 2, 4]
    assert Findings("cpu", 512, 512, tuple(tried)).advised == 1


def test_no_size_is_begun_once_the_time_is_over():
    card = FakeCard(launches=6.0, each=1.0)
    sizes, _, _ = card.sizes_tried()
    assert sizes == [1, 2], "28 s and 32 s, which are the 60 s"
    assert len(card.sizes) == len(sizes) * (1 + REPEATS)


def test_memory_ends_the_trial_and_its_line_says_how_many_fit():
    """90 of 100 bytes are used: 10 and 8 times 10."""
    memory = FakeMemory(100, fixed=10, each=10)
    sizes, _, most = FakeCard(launches=1.0, each=0.001, memory=memory).sizes_tried()
    assert sizes == [1, 2, 4, 8]
    assert most == 8


def test_a_card_that_replays_is_timed_as_it_replays_and_measured_as_it_does_not():
    """Also the size that the pictures before have had recorded already."""
    memory = FakeMemory(100, fixed=10, each=10)
    card = FakeCard(launches=1.0, each=0.1, memory=memory, calls_to_settle=8)
    for _ in range(20):
        card.run(2)
    sizes, tried, most = card.sizes_tried()
    assert sizes == [1, 2, 4]
    assert [each.seconds for each in tried] == pytest.approx([0.1] * 3)
    assert most == 8
    assert not card.calls, "the last recording goes, too"


def test_memory_for_one_picture_alone_is_said_to_be_for_one():
    sizes, _, most = FakeCard(memory=FakeMemory(100, each=60)).sizes_tried()
    assert (sizes, most) == ([1], 1)


def test_without_memory_for_one_nothing_is_found():
    assert FakeCard(memory=FakeMemory(100, each=200)).sizes_tried() == ([], [], None)


def findings(*seconds, most=None):
    return Findings("gpu X", 512, 512, tuple(Tried(2**i, each) for i, each in enumerate(seconds)), most)


@pytest.mark.parametrize(
    ("seconds", "advised"),
    [((4.0, 2.0, 1.0), 4), ((1.0, 0.99, 1.0), 1), ((2.0, 1.02, 1.0), 2), ((1.0, 1.5, 0.9), 4), ((), None)],
)
def test_the_smallest_size_that_is_about_as_quick_as_any_is_advised(seconds, advised):
    assert findings(*seconds).advised == advised


def test_a_size_is_compared_with_the_advised_one():
    found = findings(4.0, 2.0, 1.0)
    assert [found.slower(pictures) for pictures in (1, 2, 4, 3)] == [4.0, 2.0, 1.0, None]
    assert found.up_to(3).advised == 2


def test_findings_are_read_as_they_were_written(tmp_path):
    run = prepare(tmp_path).run
    assert read_findings(run) is None
    for found in (findings(0.5, 0.25, most=23), findings()):
        write_findings(run, found)
        assert read_findings(run) == found
