"""The prompts of the acceptance and the counting of answers."""

from __future__ import annotations

import pytest

from ldm.training import acceptance, emoji
from ldm.training.acceptance import Outcome, Task
from ldm.training.score import Verdict

SEEN, HELD_OUT = Task(object_index=0, colour_index=1), Task(object_index=0, colour_index=0)


def test_half_of_200_prompts_are_held_out_pairs_in_turn_with_seen_ones():
    tasks = acceptance.acceptance_tasks()
    assert [task.held_out for task in tasks] == [False, True] * 100


def test_prompts_are_always_the_same_and_name_no_object_twice():
    tasks = acceptance.acceptance_tasks()
    assert tasks == acceptance.acceptance_tasks()
    assert len({task.object_index for task in tasks}) == len(tasks)
    assert len({task.colour_index for task in tasks}) == len(emoji.COLOURS)


def test_held_out_means_that_training_never_shows_the_pair():
    held = set(emoji.pairs(held_out=True))
    assert all(((t.object_index, t.colour_index) in held) == t.held_out for t in acceptance.acceptance_tasks())


def test_a_prompt_is_the_caption_of_its_pair():
    lion, blue = emoji.OBJECT_NAMES.index("lion"), emoji.COLOUR_NAMES.index("blue")
    assert Task(lion, blue).prompt == "a lion on a blue background"


def test_answers_are_counted_by_side():
    outcomes = [
        Outcome(SEEN, Verdict(1, (0, 4))),
        Outcome(SEEN, Verdict(1, (4, 0))),
        Outcome(HELD_OUT, Verdict(3, (4, 5, 6, 7, 8, 0))),
        Outcome(HELD_OUT, Verdict(0, ())),
    ]
    assert acceptance.summarise(outcomes) == {
        "all": {"count": 4, "object_top1": 0.25, "object_top5": 0.5, "background": 0.75},
        "seen": {"count": 2, "object_top1": 0.5, "object_top5": 1.0, "background": 1.0},
        "held_out": {"count": 2, "object_top1": 0.0, "object_top5": 0.0, "background": 0.5},
    }


def test_a_side_without_prompts_is_left_out():
    assert set(acceptance.summarise([Outcome(SEEN, Verdict(1, (0,)))])) == {"all", "seen"}


@pytest.mark.parametrize(
    ("objects", "background", "accepted"), [(0.8, 0.95, True), (0.795, 1.0, False), (1.0, 0.945, False)]
)
def test_both_bars_must_be_met(objects, background, accepted):
    assert acceptance.is_accepted({"all": {"object_top1": objects, "background": background}}) is accepted


@pytest.mark.slow
def test_real_pictures_of_all_prompts_are_accepted_in_full(sprites, judge):
    tasks = acceptance.acceptance_tasks()
    pictures = emoji.EmojiPictures(sprites)
    middle = emoji.Placement(0.75, 0.5, 0.5)
    painted = [pictures.picture(task.object_index, task.colour_index, middle).pixels for task in tasks]
    summary = acceptance.summarise(acceptance.judge_pictures(judge, tasks, painted))
    assert summary["all"] == {"count": 200, "object_top1": 1.0, "object_top5": 1.0, "background": 1.0}
    assert acceptance.is_accepted(summary)


def test_a_description_names_what_was_asked_and_what_was_found():
    described = acceptance.describe(Outcome(SEEN, Verdict(1, (5, 0))))
    assert described == {
        "prompt": "a monkey on a black background",
        "held_out": False,
        "object_right": False,
        "background_right": True,
        "guesses": ["lion", "monkey"],
        "background": "black",
    }
