"""What the small model is asked for to be accepted, and how its answers are counted.

Half of the prompts name an object on a colour that training has shown together, half a pair that it never has. Every
prompt has an object of its own, so that the share of objects got right speaks for nearly all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence

import numpy as np

from ldm.training.emoji import COLOUR_NAMES, COLOURS, OBJECT_NAMES, caption, is_held_out
from ldm.training.score import Judge, Verdict

PROMPT_COUNT = 200
OBJECT_BAR = 0.80
BACKGROUND_BAR = 0.95


@dataclass(frozen=True)
class Task:
    """One pair to paint."""

    object_index: int
    colour_index: int

    @property
    def prompt(self) -> str:
        """The pair in words, as training has captioned it or would have."""
        return caption(OBJECT_NAMES[self.object_index], COLOUR_NAMES[self.colour_index])

    @property
    def held_out(self) -> bool:
        """Whether training never shows the two together."""
        return is_held_out(self.object_index, self.colour_index)


@dataclass(frozen=True)
class Outcome:
    """A task and what the picture made for it was found to show."""

    task: Task
    verdict: Verdict

    @property
    def background_right(self) -> bool:
        """Whether the ground has the asked colour."""
        return self.verdict.colour_index == self.task.colour_index

    def object_right(self, *, within: int = 1) -> bool:
        """Whether the asked object is among the first `within` guesses."""
        return self.verdict.shows(self.task.object_index, within=within)


def acceptance_tasks() -> List[Task]:
    """The prompts of the acceptance, always the same: seen and held-out pairs in turn, no object twice."""
    rng = np.random.default_rng(0)
    objects = rng.permutation(len(OBJECT_NAMES))[:PROMPT_COUNT]
    return [_task(int(index), held_out=bool(place % 2), rng=rng) for place, index in enumerate(objects)]


def _task(object_index: int, *, held_out: bool, rng: np.random.Generator) -> Task:
    colours = [index for index in range(len(COLOURS)) if is_held_out(object_index, index) == held_out]
    return Task(object_index, int(rng.choice(colours)))


def judge_pictures(judge: Judge, tasks: Sequence[Task], pictures: Sequence[np.ndarray]) -> List[Outcome]:
    """What each picture (H,W,3) uint8 shows, beside what it should."""
    return [Outcome(task, judge.verdict(pixels)) for task, pixels in zip(tasks, pictures)]


def summarise(outcomes: Sequence[Outcome]) -> Dict[str, Dict[str, float]]:
    """Shares from 0 to 1 and their count, over all prompts, over seen pairs and over held-out pairs."""
    sides = {
        "all": list(outcomes),
        "seen": [outcome for outcome in outcomes if not outcome.task.held_out],
        "held_out": [outcome for outcome in outcomes if outcome.task.held_out],
    }
    return {side: _shares(members) for side, members in sides.items() if members}


def _shares(outcomes: Sequence[Outcome]) -> Dict[str, float]:
    count = len(outcomes)
    return {
        "count": count,
        "object_top1": sum(outcome.object_right() for outcome in outcomes) / count,
        "object_top5": sum(outcome.object_right(within=5) for outcome in outcomes) / count,
        "background": sum(outcome.background_right for outcome in outcomes) / count,
    }


def is_accepted(summary: Dict[str, Dict[str, float]]) -> bool:
    """Whether both bars are met over all prompts."""
    shares = summary["all"]
    return shares["object_top1"] >= OBJECT_BAR and shares["background"] >= BACKGROUND_BAR


def describe(outcome: Outcome) -> Dict[str, Any]:
    """An outcome as plain values for a report."""
    guesses = [OBJECT_NAMES[index] for index in outcome.verdict.ranking[:5]]
    return {
        "prompt": outcome.task.prompt,
        "held_out": outcome.task.held_out,
        "object_right": outcome.object_right(),
        "background_right": outcome.background_right,
        "guesses": guesses,
        "background": COLOUR_NAMES[outcome.verdict.colour_index],
    }
