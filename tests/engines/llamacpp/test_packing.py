"""Where sequences lie: decodes that a step computes together come to lie side by side."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from setpoint.engines.llamacpp.packing import Move, Packing


def gaps(places: list[int]) -> int:
    return sum(after != before + 1 for before, after in pairwise(places))


def packing(count: int, held: set[int]) -> Packing:
    made = Packing(count)
    made.free -= held
    return made


def test_a_prompt_begins_at_the_far_end() -> None:
    made = Packing(4)
    assert [made.take(), made.take()] == [3, 2]
    made.give_back(3)
    assert made.take() == 3


def test_a_decode_that_has_begun_joins_the_others() -> None:
    assert packing(8, {0, 1, 2, 7}).moves([0, 1, 2, 7]) == [Move(7, 3)]


def test_a_gap_that_one_move_closes_is_closed_first() -> None:
    assert packing(8, {0, 1, 3, 4, 5, 7}).moves([0, 1, 3, 4, 5, 7]) == [Move(7, 2)]


def test_who_is_left_out_makes_room() -> None:
    assert packing(6, {0, 1, 2, 3, 4}).moves([0, 1, 4]) == [Move(2, 5), Move(4, 2)]


def test_without_a_free_place_nothing_moves() -> None:
    assert packing(4, {0, 1, 2, 3}).moves([0, 3]) == []


@given(st.data())
def test_the_same_step_again_and_again_ends_without_a_gap(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 17))
    held = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    wanted = data.draw(st.sets(st.sampled_from(sorted(held)), min_size=1))
    made = packing(count, set(held))
    together, others = sorted(wanted), held - wanted
    for _ in range(len(wanted)):
        before = gaps(together)
        moves = made.moves(together)
        assert bool(moves) == (before > 0)
        assert len(moves) <= 2
        for source, target in moves:
            assert source in held
            assert target not in held
            held = held - {source} | {target}
            together = sorted(target if place == source else place for place in together)
            others = {target if place == source else place for place in others}
        assert made.free == {*range(count)} - held
        assert {*together} | others == held
    assert gaps(together) == 0
