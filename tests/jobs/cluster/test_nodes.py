"""A node is kept away from when workers fail there again and again while others make pictures."""

from __future__ import annotations

from jobs.attendance import End
from jobs.cluster.nodes import failing_nodes
from tests.jobs.crew import attendance


def at(when, host, **changes):
    """A worker that began 10 s before `when`, its last sign of life."""
    return attendance(host=host, started=when - 10.0, updated=when, pid=int(when), **changes)


def error(when, host="bad"):
    return at(when, host, end=End.ERROR)


def success(when, host="good"):
    return at(when, host, end=End.DONE, made=5)


def test_three_errors_in_a_row_speak_against_a_node():
    assert failing_nodes([error(100), error(110), error(120), success(200)]) == {"bad": 3}


def test_two_do_not():
    assert failing_nodes([error(100), error(110), success(200)]) == {}


def test_a_success_there_since_clears_it():
    errors = [error(100), error(110), error(120)]
    assert failing_nodes([*errors, success(130, "bad"), success(200)]) == {}
    assert failing_nodes([success(50, "bad"), *errors, success(200)]) == {"bad": 3}


def test_one_at_work_there_with_pictures_made_clears_it_too():
    errors = [error(100), error(110), error(120)]
    assert failing_nodes([*errors, at(130, "bad", made=1), success(200)]) == {}
    assert failing_nodes([*errors, at(130, "bad", made=0), success(200)]) == {"bad": 3}


def test_a_card_on_which_no_picture_comes_out_speaks_against_its_node():
    """Its memory may be held by another, or it gives nothing but NaN; the process itself ends in good order."""
    sick = [at(when, "bad", end=End.DONE, failed=20) for when in (100, 110, 120)]
    assert failing_nodes([*sick, success(200)]) == {"bad": 3}
    assert failing_nodes([*sick[:2], at(120, "bad", end=End.DONE, made=1, failed=19), success(200)]) == {}


def test_what_fails_everywhere_is_no_nodes_fault():
    everywhere = [error(when + 100, host) for when in range(5) for host in ("one", "two", "three")]
    assert failing_nodes(everywhere) == {}
    assert failing_nodes([success(50), *everywhere]) == {}


def test_workers_that_were_lost_count_once_a_crash():
    crash = [at(100.0 + rank / 10, "bad", rank=rank) for rank in range(4)]
    later = [at(1000.0, "bad"), at(2000.0, "bad")]
    lost = [*crash, *later]
    assert failing_nodes([*lost, success(3000)], lost) == {"bad": 3}
    assert failing_nodes([*crash, success(3000)], crash) == {}
    assert failing_nodes([*lost, success(3000)]) == {}


def test_processes_outside_slurm_have_no_node_to_leave_out():
    local = [at(when, "here", job="", task="", end=End.ERROR) for when in (100, 110, 120)]
    assert failing_nodes([*local, success(200)]) == {}


def test_order_does_not_matter():
    errors = [error(100), error(110), error(120)]
    assert failing_nodes([success(200), *reversed(errors)]) == {"bad": 3}


def test_nobody_is_no_failing_node():
    assert failing_nodes([]) == {}
