"""Which rank is named as the one for which the others wait."""

from callbacks.curves.slowest_rank import SlowestRank, verdict


def named(windows):
    slowest = SlowestRank()
    return [slowest.note(seconds) for seconds in windows]


def test_a_rank_that_is_slowest_in_most_windows_is_named_once():
    assert named([[1.0, 1.0, 1.2, 1.0]] * 30) == [None] * 5 + [2] + [None] * 24


def test_a_rank_that_is_hardly_slower_is_not_named():
    assert set(named([[1.0, 1.09, 1.0]] * 30)) == {None}


def test_ranks_that_take_turns_are_not_named():
    assert set(named([[1.5, 1.0, 1.0], [1.0, 1.5, 1.0]] * 20)) == {None}


def test_a_rank_is_named_even_if_another_was_slowest_in_some_windows():
    assert named([[1.0, 1.5], [1.2, 1.0], [1.0, 1.5]] * 5)[:10].count(1) == 1


def test_a_second_rank_is_named_too():
    assert [rank for rank in named([[1.0, 1.5, 1.0]] * 10 + [[2.0, 1.0, 1.0]] * 10) if rank is not None] == [1, 0]


def test_the_message_names_rank_host_and_delay():
    assert verdict([0.1, 0.13], 1, "node7") == (
        "The other ranks wait for rank 1 on node7: it was the slowest by more than 10% in most of the last 10 points of the "
        "curves, now by 30% (130 ms for a batch)."
    )
