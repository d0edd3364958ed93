"""The plug-in inside a real vLLM server, asked over HTTP: what must not go wrong when something else does.

`SETPOINT_VLLM_COMMAND` is the `vllm` command of an installation that has setpoint beside it, `SETPOINT_VLLM_MODEL` the
folder of a small model.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from setpoint.journal import replay
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.target import ClassTargets, EndpointTarget
from setpoint.steptime.learner import restored
from setpoint.workload import PlannedRequest

COMMAND, MODEL = os.environ.get("SETPOINT_VLLM_COMMAND", ""), os.environ.get("SETPOINT_VLLM_MODEL", "")
pytestmark = pytest.mark.skipif(not (COMMAND and MODEL), reason="SETPOINT_VLLM_COMMAND and _MODEL name a vLLM")
SCHEDULER = ("--scheduler-cls", "setpoint.engines.vllm.SetpointScheduler")
CHAT = {"chat": {"ttft_ms": 3000, "tpot_ms": 300}}
START_S, ANSWER_S = 900.0, 600.0


class Server:
    """A vLLM that runs, by what a client does with it."""

    def __init__(self, url: str, log: Path, folder: Path) -> None:
        self.url, self.log, self.folder = url, log, folder
        self.client = httpx.Client(base_url=url, timeout=ANSWER_S)

    def ask(self, prompt: str = "The sky is", tokens: int = 8, **body: object) -> httpx.Response:
        asked = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, **body}
        return self.client.post("/v1/completions", json=asked)

    def is_well(self) -> bool:
        """Whether a plain question is answered, and nothing is left running."""
        answer = self.ask(tokens=5, ignore_eos=True)
        return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 5 and self.is_idle()

    def is_idle(self) -> bool:
        for _ in range(100):
            found = self.numbers()
            if not found["vllm:num_requests_running"] and not found["vllm:num_requests_waiting"]:
                return True
            time.sleep(0.2)
        return False

    def numbers(self) -> dict[str, float]:
        """Return the sums over all labels but `reason`, `by` and `class_name`, by name and those."""
        found: dict[str, float] = {}
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith("#"):
                continue
            name, _, value = line.rpartition(" ")
            name, _, labels = name.partition("{")
            kept = [label.split('"')[1] for label in labels.rstrip("}").split(",") if label[:2] in {"re", "by", "cl"}]
            for key in {name, "/".join([name, *kept])}:
                found[key] = found.get(key, 0.0) + float(value)
        return found


def start(folder: Path, flags: tuple[str, ...], options: dict[str, Any]) -> tuple["subprocess.Popen[bytes]", str, Path]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    table = {"setpoint": {"default_class": "chat", "classes": CHAT, **options}}
    command = [
        *(COMMAND, "serve", MODEL, "--served-model-name", "m", "--enforce-eager", "--max-model-len", "2048"),
        *("--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)),
        *SCHEDULER,
        *("--additional-config", json.dumps(table)),
        *flags,
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = folder / "vllm.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    return process, f"http://127.0.0.1:{port}", log


def end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module", params=["caching", "plain"], name="server")
def _server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    flags: tuple[str, ...] = (
        "--max-num-seqs",
        "8",
        "--max-num-batched-tokens",
        "512",
        "--num-gpu-blocks-override",
        "24",
    )
    options: dict[str, Any] = {"journal": str(folder / "journal.jsonl")}
    if request.param == "plain":
        flags += ("--no-enable-prefix-caching", "--scheduling-policy", "priority")
        options |= {"priorities": {"9": "batch"}, "refusal": "abort"}
    with running(folder, flags, options) as found:
        yield found


@contextmanager
def running(folder: Path, flags: tuple[str, ...], options: dict[str, Any]) -> Iterator[Server]:
    """Run a server; it is gone afterwards."""
    process, url, log = start(folder, flags, options)
    try:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1.0)
        server = Server(url, log, folder)
        with server.client:
            yield server
    finally:
        end(process)


def xargs(**values: object) -> dict[str, Any]:
    return {"vllm_xargs": {f"setpoint.{key}": value for key, value in values.items()}}


BATCH = xargs(**{"class": "batch"})


@pytest.mark.parametrize(
    "asked",
    [xargs(**{"class": "nope"}), xargs(ttft_ms=-5), xargs(tpot_ms="soon"), xargs(ttft_ms=1e300), xargs(ttftms=5)],
    ids=["unknown class", "negative", "no number", "absurd", "unknown key"],
)
def test_what_makes_no_sense_is_refused_and_harms_nobody(server: Server, asked: dict[str, Any]) -> None:
    before = server.numbers().get("setpoint_refused_total/malformed", 0.0)
    answer = server.ask(**asked)
    if server.folder.name.startswith("plain"):
        assert answer.json()["choices"][0]["text"] == ""
        assert "setpoint: " in answer.json()["choices"][0]["stop_reason"]
    else:
        assert answer.status_code == 500
    assert server.is_well()
    assert server.numbers()["setpoint_refused_total/malformed"] == before + 1


def test_targets_that_cannot_be_met_are_served_late_not_never(server: Server) -> None:
    answer = server.ask(tokens=12, ignore_eos=True, **xargs(ttft_ms=0.001, tpot_ms=0.001))
    assert answer.json()["usage"]["completion_tokens"] == 12
    assert server.is_well()


def test_one_who_leaves_while_parked_or_waiting_is_forgotten(server: Server) -> None:
    story = "Count the stars. " * 30

    def leave(index: int) -> None:
        body = {"model": "m", "prompt": f"{index} {story}", "max_tokens": 600, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body | BATCH) as answer:
            for count, _ in enumerate(answer.iter_lines()):
                if count > 3:
                    break

    def chat(index: int) -> int:
        own = xargs(ttft_ms=3000, tpot_ms=40)
        asked = server.ask(f"{index} chats", 40, ignore_eos=True, **own).json()
        return int(asked["usage"]["completion_tokens"])

    with ThreadPoolExecutor(16) as pool:
        leaving = [pool.submit(leave, i) for i in range(10)]
        time.sleep(1.0)
        assert [*pool.map(chat, range(4))] == [40] * 4
        for one in leaving:
            one.result()
    assert server.is_idle()
    assert server.is_well()


def test_when_kv_runs_out_everybody_gets_the_whole_answer(server: Server) -> None:
    def job(index: int) -> int:
        story = f"{index} tells of the sea. " * 40
        return int(server.ask(story, 360, ignore_eos=True, **BATCH).json()["usage"]["completion_tokens"])

    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(job, i) for i in range(8)]
        time.sleep(3.0)
        chats = [server.ask(f"{i} asks for tea", 16, ignore_eos=True) for i in range(3)]
        assert [c.json()["usage"]["completion_tokens"] for c in chats] == [16] * 3
        assert [j.result() for j in jobs] == [360] * 8
    assert server.numbers()["setpoint_preempted_total"] > 0
    assert server.is_well()


def test_a_prompt_found_in_the_prefix_cache_is_answered_as_before(server: Server) -> None:
    story = "Once there was a king who had three sons and a well. " * 20
    first = server.ask(story, 12, ignore_eos=True).json()["choices"][0]["text"]
    before = server.numbers()["vllm:prefix_cache_hits_total"]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(server.ask, f"{i} sings", 60, ignore_eos=True, **BATCH) for i in range(2)]
        again = [pool.submit(server.ask, story, 12, ignore_eos=True) for _ in range(2)]
        assert [one.result().json()["choices"][0]["text"] for one in again] == [first] * 2
        assert [one.result().json()["usage"]["completion_tokens"] for one in jobs] == [60] * 2
    hits = server.numbers()["vllm:prefix_cache_hits_total"] - before
    assert (hits > 0) is server.folder.name.startswith("caching")
    assert server.is_well()


def test_several_choices_structure_and_probabilities_are_as_without_the_plug_in(server: Server) -> None:
    several = server.ask(tokens=6, n=3, temperature=0.8, seed=1, ignore_eos=True).json()
    assert [len(choice["text"]) > 0 for choice in several["choices"]] == [True] * 3
    chosen = server.ask("Is water wet? Answer:", 8, structured_outputs={"choice": ["yes", "no"]}).json()
    assert chosen["choices"][0]["text"] in {"yes", "no"}
    likely = server.ask(tokens=4, logprobs=2, prompt_logprobs=1, ignore_eos=True).json()
    assert len(likely["choices"][0]["logprobs"]["tokens"]) == 4
    assert server.is_well()


def test_while_paused_nothing_runs_and_afterwards_all_goes_on(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(server.ask, "Long ago", 200, ignore_eos=True, **BATCH)
        time.sleep(1.0)
        assert server.client.post("/pause", params={"mode": "keep"}).status_code == 200
        still = server.numbers()["vllm:generation_tokens_total"]
        time.sleep(2.0)
        assert server.numbers()["vllm:generation_tokens_total"] <= still + 2
        assert server.client.post("/resume").status_code == 200
        assert job.result().json()["usage"]["completion_tokens"] == 200
    assert server.is_well()


def test_the_load_generator_says_class_and_targets(server: Server) -> None:
    before = server.numbers()
    classes = {"batch": ClassTargets(), "chat": ClassTargets(ttft_ms=2500.0, tpot_ms=250.0)}
    target = EndpointTarget(url=server.url, api="completions", model="m", engine="vllm", classes=classes)
    plan = [
        PlannedRequest(id=i, at_s=0.1 * i, prompt_tokens=20, output_tokens=6, class_name="batch" if i % 2 else "chat")
        for i in range(8)
    ]
    run = measure_in_process(target, plan)
    assert [r.output_tokens for r in run.records if not r.is_failed] == [6] * 8
    assert server.is_well()
    after = server.numbers()
    for name, more in (("batch", 4), ("chat", 5)):
        key = f"setpoint_finished_total/{name}"
        assert after[key] == before.get(key, 0.0) + more
    journal = (server.folder / "journal.jsonl").read_text()
    assert '"ttft_s":2.5' in journal
    assert '"tpot_s":0.25' in journal


def test_a_priority_names_a_class(server: Server) -> None:
    is_named = server.folder.name.startswith("plain")
    before = server.numbers().get("setpoint_finished_total/batch", 0.0)
    assert server.ask(priority=9).status_code == 200
    assert server.is_well()
    assert server.numbers().get("setpoint_finished_total/batch", 0.0) == before + is_named


def test_steps_were_left_alone_only_while_paused_or_a_grammar_compiled_and_the_journal_replays(server: Server) -> None:
    assert server.is_well()
    prefix = "setpoint_fallbacks_total/"
    left_alone = {key.removeprefix(prefix): n for key, n in server.numbers().items() if key.startswith(prefix)}
    assert left_alone.keys() <= {"paused", "stalled"}
    assert left_alone.get("stalled", 0.0) <= 3.0, "a step or so for each grammar"
    lines = (server.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    report = replay(lines, restored)
    assert report.is_identical
    assert report.steps > 300


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--no-enable-chunked-prefill",), "chunked prefill is off"),
        (
            (
                "--speculative-config",
                '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 2}',
            ),
            "speculative decoding",
        ),
    ],
    ids=["chunked prefill off", "speculative decoding"],
)
def test_what_cannot_be_steered_ends_the_start_with_the_reason(
    tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    process, _, log = start(tmp_path, flags, {})
    try:
        assert process.wait(START_S) != 0
    finally:
        end(process)
    text = log.read_text()
    assert f"setpoint cannot steer this vLLM: {words}" in text
    assert "leave --scheduler-cls out" in text


def adapter(folder: Path, name: str) -> Path:
    """Write an adapter that changes nothing (its second matrices are zero), and return its folder."""
    layers, rank = json.loads((Path(MODEL) / "config.json").read_text()), 8
    width, heads = layers["hidden_size"], layers["num_attention_heads"]
    shapes = {"lora_A": (rank, width), "lora_B": (heads * layers.get("head_dim", width // heads), rank)}
    header, data = {}, b""
    for i in range(layers["num_hidden_layers"]):
        for part, shape in shapes.items():
            value = struct.pack("<f", 0.01 if part == "lora_A" else 0.0) * (shape[0] * shape[1])
            key = f"base_model.model.model.layers.{i}.self_attn.q_proj.{part}.weight"
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": (len(data), len(data) + len(value))}
            data += value
    text = json.dumps(header).encode()
    made = folder / name
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (made / "adapter_config.json").write_text(json.dumps(config))
    return made


def test_adapters_take_turns_and_everybody_gets_the_whole_answer(tmp_path: Path) -> None:
    modules = [f"{name}={adapter(tmp_path, name)}" for name in ("one", "two")]
    flags = ("--max-num-seqs", "8", "--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--lora-modules")
    with running(tmp_path, (*flags, *modules), {}) as server, ThreadPoolExecutor(9) as pool:
        asked = [
            pool.submit(server.ask, "The sky is", 24, model=name, ignore_eos=True, **more)
            for name in ("m", "one", "two")
            for more in ({}, BATCH, {})
        ]
        found = [one.result().json() for one in asked]
        assert [one["usage"]["completion_tokens"] for one in found] == [24] * 9
        assert len({one["choices"][0]["text"] for one in found}) == 1
        assert server.is_well()
