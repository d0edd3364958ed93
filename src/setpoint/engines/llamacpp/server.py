"""llama-server out of the `xllamacpp` wheel: `python -m setpoint.engines.llamacpp.server -m MODEL --port 8080 -np 8`.

The wheel holds llama.cpp's HTTP server but no command for it. This one takes those flags of llama-server that are worth
tuning, by their own names and with their own defaults, so that a command that was found with it holds for any
llama-server. It serves until it is told to end.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from setpoint.errors import EngineError

AUTO_SLOTS = 4
"""What llama-server takes for `-np -1`, together with one KV buffer for all of them."""
FLASH = {"auto": -1, "off": 0, "on": 1}


def parser() -> argparse.ArgumentParser:
    """Return the flags that are understood."""
    flags = argparse.ArgumentParser(prog="llama-server", description="llama-server of the xllamacpp wheel")
    flags.add_argument("--version", action="store_true", help="print the build and end")
    flags.add_argument("-m", "--model", help="a GGUF file")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=8080)
    flags.add_argument("-c", "--ctx-size", type=int, default=0, help="tokens of all slots (default: the model's)")
    flags.add_argument("-np", "--parallel", type=int, default=-1, help="slots (default: 4 with one KV buffer)")
    flags.add_argument("-b", "--batch-size", type=int, default=2048)
    flags.add_argument("-ub", "--ubatch-size", type=int, default=512)
    flags.add_argument("-t", "--threads", type=int, default=-1)
    flags.add_argument("-tb", "--threads-batch", type=int, default=-1)
    flags.add_argument("-ctk", "--cache-type-k", default="f16")
    flags.add_argument("-ctv", "--cache-type-v", default="f16")
    flags.add_argument("-fa", "--flash-attn", choices=sorted(FLASH), default="auto")
    flags.add_argument("-kvu", "--kv-unified", action=argparse.BooleanOptionalAction, default=None)
    flags.add_argument("--spec-type", default="none", help="none, ngram-simple, ngram-map-k, ngram-mod or ngram-cache")
    flags.add_argument("--cache-ram", type=int, default=8192, help="MiB for prompts of the past")
    return flags


def set_params(params: Any, asked: argparse.Namespace, native: Any) -> None:  # noqa: ANN401 - the wheel has no types
    """Carry the flags over to the parameters of the wheel; raises EngineError for a name that it does not have."""
    is_auto = asked.parallel < 0
    params.model.path = asked.model
    params.hostnames, params.port = [asked.host], asked.port
    params.n_ctx = asked.ctx_size
    params.n_parallel = AUTO_SLOTS if is_auto else asked.parallel
    params.kv_unified = is_auto if asked.kv_unified is None else asked.kv_unified
    params.n_batch, params.n_ubatch = asked.batch_size, asked.ubatch_size
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = asked.threads, asked.threads_batch
    params.flash_attn_type = native.llama_flash_attn_type(FLASH[asked.flash_attn])
    params.cache_type_k = _named(native.ggml_type, "GGML_TYPE_", asked.cache_type_k)
    params.cache_type_v = _named(native.ggml_type, "GGML_TYPE_", asked.cache_type_v)
    params.speculative.types = [
        _named(native.common_speculative_type, "COMMON_SPECULATIVE_TYPE_", name) for name in asked.spec_type.split(",")
    ]
    params.cache_ram_mib = asked.cache_ram
    params.endpoint_metrics = True
    params.warmup = True


def _named(kind: Any, prefix: str, name: str) -> Any:  # noqa: ANN401 - an enumeration of the wheel
    try:
        return kind[prefix + name.upper().replace("-", "_")]
    except KeyError:
        raise EngineError(f"this build knows no {name}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM; exits with a sentence on what went wrong."""
    import xllamacpp  # noqa: PLC0415 - only here, so that the flags can be asked for without the wheel

    asked = parser().parse_args(arguments)
    if asked.version:
        sys.stdout.write(f"xllamacpp {xllamacpp.__version__}\n")
        return
    if not asked.model:
        sys.exit("error: -m: name a GGUF file")
    params = xllamacpp.CommonParams()
    try:
        set_params(params, asked, xllamacpp)
        # held, since the server ends when it is collected
        server = xllamacpp.Server(params)
    except (EngineError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server
    sys.exit(0)


if __name__ == "__main__":
    main()
