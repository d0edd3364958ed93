"""What a machine did can be done again from its journal; what is wrong with a journal is said."""

from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from setpoint.cli import main
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import STRATEGIES, make_strategy
from setpoint.engines.journal import JournalFile
from setpoint.errors import ConfigError, JournalError
from setpoint.journal import Header, ReplayReport, Unanswered, encode_entry, encode_header, encode_unanswered, replay
from setpoint.journal.format import LINE_BYTES_MAX
from setpoint.model import PRESETS, Capacity, Request, StepFinished, Tick
from setpoint.seeds import stream
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.steptime.learner import FixedStepTime, LearnedStepTime, restored
from setpoint.steptime.model import StepTimeModel, encode, linear
from setpoint.units import Blocks, Instant, Seconds, Tokens

CAPACITY = Capacity(
    slots=8,
    kv_blocks=Blocks(160),
    block_tokens=Tokens(16),
    step_tokens_max=Tokens(256),
    context_tokens_max=Tokens(1024),
)


def believed() -> StepTimeModel:
    return linear(key="smol@here", step_s=0.004, decode_s=0.001, prefill_s=0.0004)


def header(strategy: str = "slack", *, is_learning: bool = True) -> Header:
    return Header(
        strategy=strategy,
        options={"chunk_min": 8} if strategy == "slack" else {},
        classes=tuple(PRESETS.values()),
        capacity=CAPACITY,
        step_time=msgspec.Raw(encode(believed())),
        is_learning=is_learning,
        engine="smol@here",
        made_by=version("setpoint"),
    )


def journal(strategy: str = "slack", *, is_learning: bool = True) -> list[bytes]:
    """Chat beside a backlog of batch work, on a replica that is slower than its machine believes at first."""
    described = header(strategy, is_learning=is_learning)
    step_time = (LearnedStepTime if is_learning else FixedStepTime)(believed())
    machine = ReplicaMachine(make_strategy(strategy, **described.options), PRESETS, CAPACITY, step_time)
    world = FixedStepTime(linear(key="truth", step_s=0.005, decode_s=0.0013, context_s=1e-6, prefill_s=0.0005))
    lines = [encode_header(described)]
    simulator = ReplicaSimulator(
        machine, world, journal=lambda event, commands: lines.append(encode_entry(event, commands))
    )
    draw = stream(7, "journal")
    at = 0.0
    arrivals = []
    for request_id in range(60):
        at += draw.expovariate(10.0)
        request = Request(
            id=request_id,
            class_name="batch" if request_id % 3 else "chat",
            arrived_at=Instant(at),
            prompt_tokens=Tokens(draw.randint(1, 400)),
            output_tokens_max=Tokens(60),
        )
        arrivals.append(Arrival(request, draw.randint(1, 60)))
    assert len([*simulator.run(arrivals)]) == 60
    return lines


def replayed(lines: list[bytes]) -> ReplayReport:
    return replay(lines, restored)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("is_learning", [True, False])
def test_a_journal_replays_to_the_same_bytes(strategy: str, is_learning: bool) -> None:  # noqa: FBT001
    lines = journal(strategy, is_learning=is_learning)
    report = replayed(lines)
    assert report.is_identical
    assert report.events == len(lines) - 1
    assert report.steps > 50
    assert not report.is_cut


def test_a_journal_that_was_cut_off_in_its_last_line_replays_up_to_there() -> None:
    lines = journal()
    report = replayed([*lines[:-1], lines[-1][:-2]])
    assert report.is_identical
    assert report.is_cut
    assert report.events == len(lines) - 2


def test_the_first_command_that_differs_is_shown_from_both_sides() -> None:
    lines = journal()
    place = next(i for i, line in enumerate(lines) if b'"slot":1' in line)
    lines[place] = lines[place].replace(b'"slot":1', b'"slot":7')
    divergence = replayed(lines).divergence
    assert divergence is not None
    assert divergence.line == place + 1
    assert '"slot":7' in divergence.recorded
    assert '"slot":1' in divergence.replayed


def test_a_damaged_line_is_told_by_its_number() -> None:
    lines = journal()
    lines[4] = lines[4][:20] + b"\n"
    with pytest.raises(JournalError, match="line 5 is damaged"):
        replayed(lines)


def test_a_line_of_bytes_that_are_no_text_is_damage_too() -> None:
    lines = journal()
    lines[4] = b"\xff\xfe\n"
    with pytest.raises(JournalError, match="line 5 is damaged"):
        replayed(lines)


def test_a_missing_line_is_told_as_what_cannot_have_happened() -> None:
    lines = journal()
    place = next(i for i, line in enumerate(lines) if b"StepFinished" in line)
    with pytest.raises(JournalError, match="cannot have happened"):
        replayed([*lines[:place], *lines[place + 1 :]])


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (b"", "not a journal"),
        (b"# a text\n", "not a journal"),
        (b'{"setpoint_journal":99}\n', "format 99"),
        (b'{"setpoint_journal":1}\n', "line 1 is damaged"),
        (b'{"setpoint_journal":"x"}\n', "line 1 is damaged"),
        (b'{"setpoint_journal":1,"mach', "ends inside its first line"),
    ],
)
def test_what_is_no_journal_is_refused_with_a_reason(first: bytes, complaint: str) -> None:
    with pytest.raises(JournalError, match=complaint):
        replayed([first])


def test_an_empty_journal_is_identical() -> None:
    report = replayed([encode_header(header())])
    assert (report.events, report.is_identical) == (0, True)


def test_a_strategy_that_is_not_known_here_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'magic'"):
        replayed([encode_header(header("magic"))])


class TestOnFile:
    def write(self, path: Path, *, size_max: int = 10**9) -> None:
        machine = ReplicaMachine(make_strategy("slack", chunk_min=8), PRESETS, CAPACITY, LearnedStepTime(believed()))
        with closing(JournalFile(path, header(), size_max=size_max)) as sink:
            for at in (0.0, 0.5, 2.0):
                event = Tick(at=Instant(at))
                sink.begin(event)
                sink.end(machine.handle(event))

    def run(self, *arguments: str) -> int | str | None:
        with pytest.raises(SystemExit) as end:
            main(["replay", *arguments])
        return end.value.code

    def test_the_command_says_that_it_is_identical(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "journal.jsonl"
        path.write_bytes(b"".join(journal()))
        assert self.run(str(path)) == 0
        assert "identical" in capsys.readouterr().out

    def test_as_json_it_is_one_object(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.write(tmp_path / "journal.jsonl")
        assert self.run(str(tmp_path / "journal.jsonl"), "--json") == 0
        report = msgspec.json.decode(capsys.readouterr().out)
        assert (report["is_identical"], report["events"], report["divergence"]) == (True, 3, None)

    def test_a_difference_ends_with_code_1(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "journal.jsonl"
        path.write_bytes(b"".join(journal()).replace(b'"slot":1', b'"slot":7'))
        assert self.run(str(path)) == 1
        assert "recorded" in capsys.readouterr().out

    def test_a_file_that_is_not_there_ends_with_a_hint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(str(tmp_path / "none.jsonl")) == 2
        assert "hint: name a file that exists" in capsys.readouterr().err

    def test_a_file_that_was_cut_off_says_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "journal.jsonl"
        self.write(path)
        path.write_bytes(path.read_bytes()[:-2])
        assert self.run(str(path)) == 0
        assert "the last line was cut off" in capsys.readouterr().out

    def test_an_event_on_which_the_machine_failed_can_be_replayed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "journal.jsonl"
        machine = ReplicaMachine(make_strategy("slack", chunk_min=8), PRESETS, CAPACITY, LearnedStepTime(believed()))
        events = (Tick(at=Instant(0.0)), StepFinished(at=Instant(0.5), step_id=7, step_seconds=(Seconds(0.1),)))
        with closing(JournalFile(path, header())) as sink:
            sink.begin(events[0])
            sink.end(machine.handle(events[0]))
            sink.begin(events[1])
            with pytest.raises(AssertionError) as fault:
                machine.handle(events[1])
        report = replayed(path.read_bytes().splitlines(keepends=True))
        assert report.unanswered == Unanswered(line=3, at=0.5, event="StepFinished", error=repr(fault.value))
        assert (report.events, report.is_identical, report.is_cut) == (1, True, False)
        assert self.run(str(path)) == 0
        assert "line 3 (StepFinished at 0.5) was not answered" in capsys.readouterr().out

    def test_an_event_that_is_answered_after_all_is_told_as_such(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "journal.jsonl"
        self.write(path)
        path.write_bytes(path.read_bytes() + encode_unanswered(Tick(at=Instant(3.0))))
        assert self.run(str(path)) == 0
        assert "line 5 (Tick at 3.0) was not answered when it was written; here it is" in capsys.readouterr().out

    def test_a_file_without_lines_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "zeros"
        path.write_bytes(bytes(LINE_BYTES_MAX + 1))
        assert self.run(str(path)) == 2
        assert "a line is longer than any" in capsys.readouterr().err

    def test_at_its_limit_a_journal_ends_and_replays_up_to_there(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.jsonl"
        first = len(encode_header(header()))
        self.write(path, size_max=first + 60)
        lines = path.read_bytes().splitlines(keepends=True)
        assert path.stat().st_size <= first + 60
        assert replayed(lines).events == len(lines) - 1 == 1

    def test_the_journal_before_is_kept_beside_the_new_one(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.jsonl"
        self.write(path)
        before = path.read_bytes()
        self.write(path, size_max=1)
        assert (tmp_path / "journal.jsonl.previous").read_bytes() == before

    def test_a_place_that_cannot_be_written_is_told_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot write the journal"):
            JournalFile(tmp_path / "no" / "journal.jsonl", header())
