"""`setpoint serve` with arguments that cannot be served: one sentence, one hint, code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = "import sys; from setpoint.cli import main; main(sys.argv[1:])"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no/such/model.gguf"], "there is no model file no/such/model.gguf"),
        (["broken.gguf"], "broken.gguf is not a GGUF file"),
        (["--strategy", "slak"], "strategy.name: unknown strategy 'slak' (did you mean slack?)"),
        (["--config", "no-such.toml"], "there is no file no-such.toml"),
        (["--config", "broken.toml"], "broken.toml is not TOML"),
        (["--slots", "0"], "engine.slots: expected int >= 1"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000"),
        (["--quantize", "q4_7"], "q4_7"),
    ],
)
def test_what_cannot_be_served_ends_with_a_sentence_and_a_hint(tmp_path: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    (tmp_path / "broken.toml").write_text("[server\n")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
