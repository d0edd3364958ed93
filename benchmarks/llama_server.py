"""Runs the llama-server of the `xllamacpp` wheel in this process until it is told to end: the peer of a benchmark.

python benchmarks/llama_server.py MODEL PORT SLOTS CONTEXT_TOKENS THREADS
"""

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until SIGTERM."""
    model, port, slots, context, threads = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = int(context)
    params.cpuparams.n_threads = int(threads)
    params.cpuparams_batch.n_threads = int(threads)
    params.endpoint_metrics = True
    params.warmup = True
    # held, since the server ends when it is collected
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server
    sys.exit(0)


if __name__ == "__main__":
    main()
