"""One llama.cpp context: the KV cache of many sequences, and the batch that a forward pass reads.

Of a shared pool any sequence may grow into any free cell, and sequences that share a prefix share its cells: copying
one copies no data. Where each sequence has cells of its own, copying one copies all of them, in the next pass. The
arrays of the C batch are numpy arrays; llama.cpp reads them where they lie.
"""

import ctypes
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.kv import SEQUENCES_MAX
from setpoint.engines.llamacpp.model import Model, memory_available
from setpoint.errors import ConfigError, EngineError, ModelError

_UBATCH_MAX: Final = 512


class Context:
    """The mutable half of an engine: KV cells and the batch. Used from one thread."""

    def __init__(
        self, model: Model, *, cells: int, sequences: int, step_tokens_max: int, threads: int, is_shared: bool
    ) -> None:
        """Reserve `cells` tokens of KV for `sequences` sequences, and a batch of `step_tokens_max` tokens.

        `is_shared`: the cells are one pool; otherwise each sequence has an equal part, a multiple of 256 (`kv`). A pass
        gives logits for at most one token of each sequence.

        Raises ConfigError for sizes that contradict each other, and ModelError when the memory does not suffice.
        """
        if not 1 <= sequences <= SEQUENCES_MAX:
            raise ConfigError(
                f"{sequences} sequences, slots and prefixes together, are not within 1 to {SEQUENCES_MAX}"
            )
        if not 1 <= step_tokens_max <= cells:
            raise ConfigError(f"a step of {step_tokens_max} tokens does not fit a KV cache of {cells} tokens")
        self._model, self._c = model, model.native.c
        self._is_shared = is_shared
        _check_memory(model, cells)
        params: Any = self._c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = cells, step_tokens_max, sequences
        params.n_ubatch, params.n_outputs_max = min(step_tokens_max, _UBATCH_MAX), sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.swa_full = is_shared, True
        self._handle: int | None = self._c.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelError(
                f"llama.cpp cannot make a context of {cells} tokens: {model.native.last_errors() or 'no reason given'}",
                hint="lower the KV cache, the slots or the step size",
            )
        self._check_sizes(params)
        self._memory: int = self._c.llama_get_memory(self._handle)
        self._make_batch(step_tokens_max)

    def close(self) -> None:
        """Free the KV cache."""
        if self._handle:
            self._c.llama_free(self._handle)
            self._handle = None

    def decode(self, tokens: int) -> None:
        """Run one forward pass over the first `tokens` entries of the batch; raise EngineError when it fails."""
        self._batch.n_tokens = tokens
        code = self._c.llama_decode(self._handle, self._batch)
        if code == 1:
            raise EngineError("the KV cache has no room for the step", hint="the capacity reported was too large")
        if code != 0:
            raise EngineError(
                f"the forward pass failed ({code}): {self._model.native.last_errors() or 'no reason given'}"
            )
        self._c.llama_synchronize(self._handle)

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """Return the logits of the last pass, shape (rows, vocabulary), in batch order; valid until the next pass."""
        pointer = ctypes.cast(self._c.llama_get_logits(self._handle), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (rows, self._model.info.vocabulary))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let sequence `target` hold the first `tokens` tokens of `source`."""
        if self._is_shared:
            self._c.llama_memory_seq_cp(self._memory, source, target, 0, tokens)
        else:
            # only whole stretches of cells can be copied
            self._c.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.drop(target, tokens)

    def move(self, source: int, target: int) -> None:
        """Let `target`, which is empty, hold all that `source` holds, and `source` nothing."""
        self._c.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.drop(source)

    def drop(self, sequence: int, start: int = 0) -> None:
        """Free what `sequence` holds from position `start` on."""
        self._c.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def length(self, sequence: int) -> int:
        """Return how many tokens `sequence` holds."""
        return int(self._c.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def _make_batch(self, size: int) -> None:
        self.token = np.zeros(size, dtype=np.int32)
        self.position = np.zeros(size, dtype=np.int32)
        self.sequence = np.zeros(size, dtype=np.int32)
        self.is_output = np.zeros(size, dtype=np.int8)
        self._ones = np.ones(size, dtype=np.int32)
        self._pointers = (self.sequence.ctypes.data + 4 * np.arange(size)).astype(np.uintp)
        batch: Any = self._model.native.layout.batch()
        for name, array in (
            ("token", self.token),
            ("pos", self.position),
            ("n_seq_id", self._ones),
            ("seq_id", self._pointers),
            ("logits", self.is_output),
        ):
            kind = dict(batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, kind))
        self._batch = batch

    def _check_sizes(self, params: Any) -> None:  # noqa: ANN401 - a ctypes struct
        """Convict a wrong layout once more: the context must have the sizes that we wrote into the struct."""
        for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads"):
            found, wanted = getattr(self._c, f"llama_{name}")(self._handle), getattr(params, name)
            if found != wanted:
                self.close()
                raise ConfigError(f"llama.cpp made a context with {name} = {found} where {wanted} was asked")


def physical_cores() -> int:
    """Return how many physical cores this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            return len(allowed)
    return len(cores)


def _check_memory(model: Model, cells: int) -> None:
    available, needed = memory_available(), cells * model.info.kv_bytes_per_token
    if available is not None and needed > available:
        raise ModelError(
            f"a KV cache of {cells} tokens needs {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free",
            hint=f"lower it to about {int(available * 0.8) // model.info.kv_bytes_per_token} tokens",
        )
