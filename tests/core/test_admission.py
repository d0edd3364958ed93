"""Who is given up: as few as possible, which brute force confirms."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.core.admission import RELEGATIONS, Job, moore_hodgson, nobody, own_deadline


def sets_of_jobs(weights: st.SearchStrategy[float]) -> st.SearchStrategy[list[Job]]:
    job = st.builds(
        Job,
        id=st.integers(0, 999),
        deadline=st.integers(0, 30).map(float),
        work_s=st.integers(0, 12).map(float),
        weight=weights,
    )
    many = st.lists(job, max_size=8, unique_by=lambda each: each.id)
    return many.map(lambda each: sorted(each, key=lambda job: (job.deadline, job.id)))


jobs = sets_of_jobs(st.just(1.0))
weighed_jobs = sets_of_jobs(st.sampled_from([0.0, 1.0, 5.0]))


def is_in_time(chosen: tuple[Job, ...], now: float) -> bool:
    for job in chosen:
        now += job.work_s
        if now > job.deadline:
            return False
    return True


@given(jobs, st.sampled_from([0.0, 3.0]))
def test_moore_hodgson_keeps_as_many_as_brute_force(many: list[Job], now: float) -> None:
    best = max(n for n in range(len(many) + 1) if any(is_in_time(c, now) for c in combinations(many, n)))
    triage = moore_hodgson(many, now)
    assert len(triage.kept) == best
    assert is_in_time(tuple(job for job in many if job.id in triage.kept), now)


@given(weighed_jobs)
def test_with_weights_too_all_that_are_kept_are_in_time(many: list[Job]) -> None:
    triage = moore_hodgson(many, 0.0)
    assert is_in_time(tuple(job for job in many if job.id in triage.kept), 0.0)


@pytest.mark.parametrize("rule", RELEGATIONS)
@given(many=weighed_jobs)
def test_everyone_is_either_kept_or_given_up(rule: str, many: list[Job]) -> None:
    triage = RELEGATIONS[rule](many, 0.0)
    assert sorted([*triage.kept, *triage.given_up]) == sorted(job.id for job in many)


@pytest.mark.parametrize("rule", ["moore-hodgson", "own-deadline"])
@given(many=jobs)
def test_the_spare_seconds_can_be_spent_before_the_kept_begin_and_not_more(rule: str, many: list[Job]) -> None:
    triage = RELEGATIONS[rule](many, 0.0)
    kept = tuple(job for job in many if job.id in triage.kept)
    if triage.spare_s is None:
        assert kept == ()
    else:
        assert is_in_time(kept, triage.spare_s)
        assert not is_in_time(kept, triage.spare_s + 0.5)


def test_the_largest_falls_for_the_many_small() -> None:
    many = [Job(0, 5.0, 2.0), Job(1, 6.0, 5.0), Job(2, 7.0, 2.0), Job(3, 8.0, 2.0)]
    assert moore_hodgson(many, 0.0).given_up == (1,)
    assert own_deadline(many, 0.0).given_up == (1,)
    assert nobody(many, 0.0).given_up == ()


def test_the_weighty_are_kept_though_they_are_larger() -> None:
    many = [Job(0, 5.0, 4.0, weight=10.0), Job(1, 6.0, 3.0)]
    assert moore_hodgson(many, 0.0).kept == (0,)
