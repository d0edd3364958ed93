from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.core.pool import PoolMachine
from setpoint.core.routing import ROUTING
from setpoint.errors import ConfigError
from setpoint.model import PRESETS, Request
from setpoint.model.pool import (
    ClientLeft,
    Dispatch,
    FirstTokenCame,
    PoolCommand,
    PoolEvent,
    PoolLayout,
    PoolSpec,
    PoolTick,
    PoolWakeAt,
    Refuse,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaReported,
    RequestCame,
    RequestEnded,
    Withdraw,
)
from setpoint.units import Instant, Seconds, Tokens


def a_request(number: int, at: float = 0.0, class_name: str = "chat", prompt: int = 100) -> Request:
    return Request(
        id=number,
        class_name=class_name,
        arrived_at=Instant(at),
        prompt_tokens=Tokens(prompt),
        output_tokens_max=Tokens(10),
    )


class Door:
    """A pool machine with what was said to it."""

    def __init__(self, layout: PoolLayout, *, prefill_s: float = 0.001) -> None:
        self.machine = PoolMachine(layout, PRESETS)
        self.sent: dict[int, list[int]] = {}
        number = 0
        for pool in layout.pools:
            for _ in range(pool.replicas):
                self.say(
                    ReplicaJoined(
                        at=Instant(0), replica=number, pool=pool.name, prefill_s=Seconds(prefill_s), cache_blocks=100
                    )
                )
                number += 1

    def say(self, event: PoolEvent) -> list[PoolCommand]:
        commands = self.machine.handle(event)
        for command in commands:
            if isinstance(command, Dispatch):
                self.sent.setdefault(command.replica, []).append(command.request_id)
        return commands

    def comes(
        self, number: int, at: float = 0.0, class_name: str = "chat", prompt: int = 100, prefix: tuple[int, ...] = ()
    ) -> list[PoolCommand]:
        return self.say(RequestCame(at=Instant(at), request=a_request(number, at, class_name, prompt), prefix=prefix))

    def ends(self, number: int, at: float = 0.0) -> list[PoolCommand]:
        return self.say(RequestEnded(at=Instant(at), request_id=number, output_tokens=10))


def test_round_robin_takes_the_replicas_in_turn() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=3),), routing="round-robin"))
    for number in range(6):
        door.comes(number)
    assert door.sent == {0: [0, 3], 1: [1, 4], 2: [2, 5]}


def test_least_work_sends_a_short_prompt_past_a_long_one() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=2),), routing="least-work"))
    door.comes(0, prompt=5000)
    door.comes(1)
    door.comes(2)
    assert door.sent == {0: [0], 1: [1, 2]}


def test_prefix_aware_goes_where_the_prefix_is_unless_that_replica_is_too_busy() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=2),), routing="prefix-aware"))
    prefix = tuple(range(6))
    door.comes(0, prompt=100, prefix=prefix)
    door.say(FirstTokenCame(at=Instant(0), request_id=0))
    door.comes(1, prompt=100, prefix=prefix)
    assert door.sent == {0: [0, 1]}
    door.comes(2, prompt=5000)
    door.comes(3, prompt=5000)
    door.comes(4, prompt=5000)
    assert sorted(map(len, door.sent.values())) == [2, 3]


def test_slack_aware_avoids_a_replica_where_the_first_token_would_be_late() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=2),), routing="slack-aware"))
    prefix = tuple(range(6))
    door.comes(0, prompt=180, prefix=prefix)
    door.comes(1, prompt=100, prefix=prefix)
    assert door.sent == {0: [0], 1: [1]}


def test_slack_aware_counts_nobody_who_is_late_already() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=2),), routing="slack-aware"))
    door.comes(0, prompt=5000)
    door.comes(1, at=9.0, prompt=100)
    assert door.sent == {0: [0], 1: [1]}
    # what replica 0 holds is long overdue, and gives way; replica 1 has work that can still be in time
    door.comes(2, at=9.0, prompt=300)
    assert door.sent == {0: [0, 2], 1: [1]}


def test_slack_aware_sends_work_without_a_deadline_where_least_is_to_be_done() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=2),), routing="slack-aware"))
    door.comes(0, prompt=180)
    door.comes(1, class_name="batch", prompt=5000)
    door.comes(2, class_name="batch", prompt=5000)
    door.comes(3, class_name="batch")
    assert door.sent == {0: [0, 2], 1: [1, 3]}


def test_a_full_pool_lets_requests_wait_and_takes_the_oldest_first() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", in_flight_max=1),)))
    for number in range(3):
        door.comes(number)
    assert door.sent == {0: [0]}
    door.ends(0)
    door.ends(1)
    assert door.sent == {0: [0, 1, 2]}


def test_work_spills_over_while_its_own_pool_is_behind() -> None:
    pools = (
        PoolSpec(name="interactive", classes=("chat",), spill_to=("batch",), spill_after_s=Seconds(0.15)),
        PoolSpec(name="batch", classes=("batch",)),
    )
    door = Door(PoolLayout(pools=pools))
    door.comes(0)
    door.comes(1)
    door.comes(2)
    assert door.sent == {0: [0, 1], 1: [2]}


def test_a_prompt_is_handed_over_from_prefill_to_decode() -> None:
    pools = (PoolSpec(name="p", role="prefill"), PoolSpec(name="d", role="decode"))
    door = Door(PoolLayout(pools=pools))
    (first,) = (c for c in door.comes(0) if isinstance(c, Dispatch))
    (second,) = (c for c in door.ends(0) if isinstance(c, Dispatch))
    assert (first.stage, first.replica, second.stage, second.replica) == ("prefill", 0, "decode", 1)
    door.ends(0)
    assert not door.machine.flights


def test_what_a_lost_replica_had_goes_elsewhere_once_and_is_then_refused() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=3),), routing="round-robin", retries_max=1))
    door.comes(0)
    door.say(ReplicaLeft(at=Instant(1), replica=0))
    where = next(replica for replica, ids in door.sent.items() if replica and 0 in ids)
    commands = door.say(ReplicaLeft(at=Instant(2), replica=where))
    assert [c.reason for c in commands if isinstance(c, Refuse)] == ["lost"]


def test_a_replica_that_is_let_go_ends_what_it_has_and_gets_no_more() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=2),), routing="round-robin"))
    door.comes(0)
    door.say(ReplicaLeft(at=Instant(0), replica=0, is_lost=False))
    door.comes(1)
    door.comes(2)
    assert door.sent == {0: [0], 1: [1, 2]}
    door.ends(0)
    assert set(door.machine.replicas) == {1}


def test_a_request_waits_here_no_longer_than_it_may() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=1),), wait_max_s=Seconds(5.0)))
    door.say(ReplicaLeft(at=Instant(0), replica=0))
    (wake,) = (c for c in door.comes(0) if isinstance(c, PoolWakeAt))
    assert wake.at == 5.0
    (refusal,) = (c for c in door.say(PoolTick(at=wake.at)) if isinstance(c, Refuse))
    assert refusal.reason == "no_replica"


def test_a_full_queue_and_an_unknown_class_are_refused_at_once() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", in_flight_max=1, classes=("chat",)),), queue_max=1))
    door.comes(0)
    door.comes(1)
    assert [c.reason for c in door.comes(2) if isinstance(c, Refuse)] == ["queue_full"]
    assert [c.reason for c in door.comes(3, class_name="voice") if isinstance(c, Refuse)] == ["unknown_class"]


def test_a_client_that_leaves_is_withdrawn_from_where_it_is() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", in_flight_max=1),)))
    door.comes(0)
    door.comes(1)
    commands = door.say(ClientLeft(at=Instant(1), request_id=0))
    assert [type(c) for c in commands] == [Withdraw, Dispatch]
    assert door.say(ClientLeft(at=Instant(1), request_id=7)) == []


@pytest.mark.parametrize(
    "layout",
    [
        {"pools": ()},
        {"pools": (PoolSpec(name="a"), PoolSpec(name="a"))},
        {"pools": (PoolSpec(name="a", classes=("chat",)), PoolSpec(name="b", classes=("chat",)))},
        {"pools": (PoolSpec(name="a", spill_to=("b",)),)},
        {"pools": (PoolSpec(name="a", role="prefill"),)},
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(layout: dict[str, tuple[PoolSpec, ...]]) -> None:
    with pytest.raises(ConfigError):
        PoolLayout(**layout)  # type: ignore[arg-type]


def test_an_unknown_rule_or_class_is_refused() -> None:
    with pytest.raises(ConfigError):
        PoolMachine(PoolLayout(routing="magic"), PRESETS)
    with pytest.raises(ConfigError):
        PoolMachine(PoolLayout(pools=(PoolSpec(name="a", classes=("nobody",)),)), PRESETS)


@given(data=st.data(), routing=st.sampled_from(list(ROUTING)), limit=st.sampled_from([None, 1, 3]))
def test_no_request_is_lost_or_in_two_places(data: st.DataObject, routing: str, limit: int | None) -> None:
    """Whatever happens, each request is on one replica, waits, was refused, or has ended; and the sums stay right."""
    layout = PoolLayout(pools=(PoolSpec(name="main", replicas=3, in_flight_max=limit),), routing=routing)
    door = Door(layout)
    machine = door.machine
    at, number, down, closed = 0.0, 0, set[int](), Counter[int]()
    for _ in range(data.draw(st.integers(1, 40))):
        at += data.draw(st.sampled_from([0.0, 0.1, 5.0]))
        flying = [f for f in machine.flights.values() if f.replica is not None]
        what = data.draw(st.sampled_from(["comes", "comes", "token", "ends", "leaves", "lost", "back", "report"]))
        commands: list[PoolCommand] = []
        if what == "comes":
            commands = door.comes(number, at, data.draw(st.sampled_from(["chat", "batch"])), prefix=(1, 2, 3))
            number += 1
        elif what in {"token", "ends", "leaves"} and flying:
            chosen = data.draw(st.sampled_from(flying)).request.id
            if what == "token":
                commands = door.say(FirstTokenCame(at=Instant(at), request_id=chosen))
            elif what == "ends":
                commands = door.ends(chosen, at)
                closed[chosen] += 1
            else:
                commands = door.say(ClientLeft(at=Instant(at), request_id=chosen))
                closed[chosen] += 1
        elif what == "lost" and machine.replicas:
            chosen = data.draw(st.sampled_from(sorted(machine.replicas)))
            down.add(chosen)
            commands = door.say(ReplicaLeft(at=Instant(at), replica=chosen))
        elif what == "back" and down:
            commands = door.say(
                ReplicaJoined(at=Instant(at), replica=down.pop(), pool="main", prefill_s=Seconds(0.001))
            )
        elif what == "report" and machine.replicas:
            commands = door.say(
                ReplicaReported(at=Instant(at), replica=min(machine.replicas), prefill_s=Seconds(0.002))
            )
        closed.update(c.request_id for c in commands if isinstance(c, Refuse))
        assert all(count == 1 for count in closed.values())
        assert set(machine.flights) == set(range(number)) - set(closed)
        places = Counter(i for r in machine.replicas.values() for i in r.flights)
        places.update(i for waiting in machine.waiting.values() for i in waiting)
        assert all(places[i] == 1 for i in machine.flights)
        for replica in machine.replicas.values():
            assert limit is None or len(replica.flights) <= limit
            pending = sum(f.uncached for f in replica.flights.values() if not f.has_begun)
            assert replica.pending_tokens == pending
            assert replica.in_flight_tokens == sum(f.request.prompt_tokens for f in replica.flights.values())
            assert len(replica.blocks) <= replica.cache_blocks


def test_the_same_events_give_the_same_commands() -> None:
    def run() -> bytes:
        door = Door(PoolLayout(pools=(PoolSpec(name="main", replicas=3),), routing="slack-aware"))
        out = [door.comes(number, 0.01 * number, prompt=50 + 37 * number % 400) for number in range(40)]
        return msgspec.json.encode(out)

    assert run() == run()


def test_word_of_what_is_not_there_changes_nothing() -> None:
    door = Door(PoolLayout())
    assert door.say(FirstTokenCame(at=Instant(0.0), request_id=7)) == []
    assert door.ends(7) == []
    assert door.say(ReplicaLeft(at=Instant(0.0), replica=99)) == []
    assert door.say(PoolTick(at=Instant(1.0))) == []
    assert door.sent == {}


def test_work_spills_over_the_first_helper_that_is_busy_too() -> None:
    pools = (
        PoolSpec(name="main", classes=("chat",), in_flight_max=1, spill_to=("near", "far")),
        PoolSpec(name="near", classes=("agent",), in_flight_max=1),
        PoolSpec(name="far"),
    )
    door = Door(PoolLayout(pools=pools))
    door.comes(1, class_name="agent")
    door.comes(2)
    door.comes(3)
    assert door.sent == {1: [1], 0: [2], 2: [3]}


def test_who_waits_on_is_woken_for_when_another_has_waited_too_long() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", in_flight_max=1),), wait_max_s=Seconds(5.0)))
    door.comes(1)
    door.comes(2, at=1.0)
    door.comes(3, at=2.0)
    said = door.say(PoolTick(at=Instant(6.0)))
    assert [type(command) for command in said] == [Refuse, PoolWakeAt]
    assert said[-1] == PoolWakeAt(at=Instant(7.0))


def test_a_pool_whose_helpers_are_all_busy_keeps_the_request() -> None:
    pools = (
        PoolSpec(name="main", in_flight_max=1, spill_to=("near",)),
        PoolSpec(name="near", classes=("agent",), in_flight_max=1),
    )
    door = Door(PoolLayout(pools=pools))
    door.comes(1, class_name="agent")
    door.comes(2)
    door.comes(3)
    assert list(door.machine.waiting["main"]) == [3]


def test_a_client_that_leaves_the_queue_disturbs_no_replica() -> None:
    door = Door(PoolLayout(pools=(PoolSpec(name="main", in_flight_max=1),)))
    door.comes(1)
    door.comes(2)
    assert door.say(ClientLeft(at=Instant(0.0), request_id=2)) == []
    assert door.ends(1) == []
