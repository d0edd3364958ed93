"""Streaming text: whole characters, and nothing that a stop string takes back."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from setpoint.engines.llamacpp.text import TextStream


class Pieces:
    """A vocabulary whose token i stands for the i-th piece."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def piece(self, token: int) -> bytes:
        return self.pieces[token]


def stream(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    text = TextStream(Pieces(pieces), stop)
    shown = []
    for token in range(len(pieces)):
        ready, is_stopped = text.push(token)
        shown.append(ready)
        if is_stopped:
            return shown, True
    return [*shown, text.finish()], False


def test_a_character_spread_over_tokens_comes_whole() -> None:
    wave = "👋".encode()
    assert stream([b"hi ", wave[:1], wave[1:3], wave[3:] + b"!"]) == (["hi ", "", "", "👋!", ""], False)


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    assert stream([b"ok", "é".encode()[:1]]) == (["ok", "", ""], False)


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert "".join(stream([b"a\xff", b"b"])[0]) == "a\ufffdb"


def test_a_stop_string_across_tokens_is_cut_off() -> None:
    assert stream([b"one E", b"N", b"D two"], ["END"]) == (["one ", "", ""], True)


def test_what_only_looked_like_a_stop_string_is_shown_late() -> None:
    assert stream([b"one E", b"N", b"D", b"O"], ["ENDING"]) == (["one ", "", "", "ENDO", ""], False)


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert stream([b"one EN"], ["END"]) == (["one ", "EN"], False)


def test_the_first_of_several_stop_strings_counts() -> None:
    assert stream([b"a;b\n\nc"], ["\n\n", ";"]) == (["a"], True)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_the_text_is_what_stands_before_the_first_stop_string(text: str, stop: list[str], data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    shown, is_stopped = stream(pieces, stop)
    places = [text.find(string) for string in stop if string in text]
    assert is_stopped == bool(places)
    if len(stop) <= 1:
        assert "".join(shown) == (text[: min(places)] if places else text)
    else:
        assert text.startswith("".join(shown))
        assert not any(string in "".join(shown) for string in stop)
