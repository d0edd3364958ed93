"""One thin layer over libllama: who provides the library, and the proof that we speak its binary language.

Two providers answer to the same code:

- `xllamacpp`: a prebuilt wheel. Its extension module happens to export the C functions of llama.cpp, so it is opened
  with `ctypes`, without importing it. The struct layout is ours and holds for exactly one version.
- `llama-cpp-python`: compiled on this machine, so it uses all that the processor offers. It declares its own layout.
- a path to a user's own libllama, whose structs must equal those of layout `B11549`.

A wrong layout does not raise: it silently reads one field as another and corrupts memory. So `Native` convicts it at
start: by version, by missing symbols, by the number of bytes that the library writes for each struct that it returns,
and by the values that the default parameters must hold. Calls release the GIL (that is what `ctypes.CDLL` does).
"""

import collections
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any, Final

from setpoint.engines.llamacpp.layout import B11549, Layout, layout_of_module
from setpoint.errors import ConfigError, EngineError

XLLAMACPP_VERSION: Final = "2026.10.11549"
ENVIRONMENT_VARIABLE: Final = "SETPOINT_LLAMA"
SPIN_COUNT: Final = "2000"
PROVIDERS: Final = ("auto", "xllamacpp", "llama-cpp-python")
INSTALL_HINT: Final = (
    f"run `pip install xllamacpp=={XLLAMACPP_VERSION}` (prebuilt), "
    "or `pip install llama-cpp-python` (compiled for this machine, minutes, needs a C++ compiler)"
)

_i32, _u32, _f32, _bool = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool
_pointer, _text, _size, _u64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64
_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, _text, _pointer)
_LOG_ERROR: Final = 4

_FUNCTIONS: Final[dict[str, tuple[Any, list[Any]]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_pointer, _pointer]),
    "llama_version": (_text, []),
    "llama_print_system_info": (_text, []),
    "llama_supports_gpu_offload": (_bool, []),
    "llama_model_free": (None, [_pointer]),
    "llama_model_get_vocab": (_pointer, [_pointer]),
    "llama_model_n_ctx_train": (_i32, [_pointer]),
    "llama_model_n_embd": (_i32, [_pointer]),
    "llama_model_n_layer": (_i32, [_pointer]),
    "llama_model_n_head": (_i32, [_pointer]),
    "llama_model_n_head_kv": (_i32, [_pointer]),
    "llama_model_size": (_u64, [_pointer]),
    "llama_model_n_params": (_u64, [_pointer]),
    "llama_model_desc": (_i32, [_pointer, _text, _size]),
    "llama_model_meta_val_str": (_i32, [_pointer, _text, _text, _size]),
    "llama_model_chat_template": (_text, [_pointer, _text]),
    "llama_model_has_encoder": (_bool, [_pointer]),
    "llama_model_has_decoder": (_bool, [_pointer]),
    "llama_model_is_recurrent": (_bool, [_pointer]),
    "llama_model_is_hybrid": (_bool, [_pointer]),
    "llama_vocab_n_tokens": (_i32, [_pointer]),
    "llama_vocab_is_eog": (_bool, [_pointer, _i32]),
    "llama_vocab_bos": (_i32, [_pointer]),
    "llama_vocab_eos": (_i32, [_pointer]),
    "llama_vocab_get_add_bos": (_bool, [_pointer]),
    "llama_vocab_get_text": (_text, [_pointer, _i32]),
    "llama_tokenize": (_i32, [_pointer, _text, _i32, _pointer, _i32, _bool, _bool]),
    "llama_token_to_piece": (_i32, [_pointer, _i32, _pointer, _i32, _i32, _bool]),
    "llama_free": (None, [_pointer]),
    "llama_n_ctx": (_u32, [_pointer]),
    "llama_n_batch": (_u32, [_pointer]),
    "llama_n_ubatch": (_u32, [_pointer]),
    "llama_n_seq_max": (_u32, [_pointer]),
    "llama_n_threads": (_i32, [_pointer]),
    "llama_get_memory": (_pointer, [_pointer]),
    "llama_memory_clear": (None, [_pointer, _bool]),
    "llama_memory_seq_rm": (_bool, [_pointer, _i32, _i32, _i32]),
    "llama_memory_seq_cp": (None, [_pointer, _i32, _i32, _i32, _i32]),
    "llama_memory_seq_pos_max": (_i32, [_pointer, _i32]),
    "llama_get_logits": (_pointer, [_pointer]),
    "llama_synchronize": (None, [_pointer]),
}

_PLAUSIBLE: Final[dict[str, dict[str, object]]] = {
    "llama_model_default_params": {
        "split_mode": 1, "main_gpu": 0, "vocab_only": False, "check_tensors": False, "use_extra_bufts": True,
        "no_alloc": False,
    },
    "llama_context_default_params": {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "rope_scaling_type": -1, "pooling_type": -1,
        "yarn_ext_factor": -1.0, "type_k": 1, "type_v": 1, "embeddings": False, "offload_kqv": True, "no_perf": True,
        "kv_unified": False, "n_samplers": 0,
    },
}  # fmt: skip


class Native:
    """An opened and checked libllama: `c` has the C functions, `layout` the struct classes."""

    def __init__(self, library: Path, layout: Layout, *, provider: str, version: str) -> None:
        """Open `library` and check it against `layout`; raise ConfigError with the evidence when it does not fit."""
        self.library, self.layout, self.provider, self.version = library, layout, provider, version
        self.is_log_shown = False
        self._errors: collections.deque[str] = collections.deque(maxlen=4)
        _calm_openmp()
        try:
            self.c: Any = ctypes.CDLL(str(library))
        except OSError as error:
            hint = "install the system package libgomp1" if "libgomp" in str(error) else INSTALL_HINT
            raise ConfigError(f"cannot open libllama at {library}: {error}", hint=hint) from error
        self._declare()
        check_layout(self.c, layout, provider=provider)
        self._callback = _log_callback(self._log)
        self.c.llama_log_set(ctypes.cast(self._callback, _pointer), None)
        self.c.llama_backend_init()

    @property
    def system(self) -> str:
        """What the build and the processor offer each other, as llama.cpp says it."""
        return str(self.c.llama_print_system_info().decode()).strip()

    def last_errors(self) -> str:
        """Return what llama.cpp last complained of, and forget it."""
        text = " ".join(line for line in self._errors if line)
        self._errors.clear()
        return text

    def _declare(self) -> None:
        layout = self.layout
        by_value: dict[str, tuple[Any, list[Any]]] = {
            "llama_model_default_params": (layout.model_params, []),
            "llama_context_default_params": (layout.context_params, []),
            "llama_model_load_from_file": (_pointer, [_text, layout.model_params]),
            "llama_init_from_model": (_pointer, [_pointer, layout.context_params]),
            "llama_decode": (_i32, [_pointer, layout.batch]),
        }
        missing = []
        for name, (restype, argtypes) in (_FUNCTIONS | by_value).items():
            function = getattr(self.c, name, None)
            if function is None:
                missing.append(name)
                continue
            function.restype, function.argtypes = restype, argtypes
        if missing:
            raise ConfigError(
                f"{self.library} is not a libllama that we can drive: {len(missing)} functions are missing, "
                f"such as {', '.join(missing[:5])}",
                hint=INSTALL_HINT,
            )

    def _log(self, level: int, text: bytes, _user: int) -> None:
        line = text.decode(errors="replace")
        if level >= _LOG_ERROR:
            self._errors.append(line.strip())
        if self.is_log_shown:
            os.write(2, text)


def check_layout(c: Any, layout: Layout, *, provider: str) -> None:  # noqa: ANN401 - a ctypes library has no type
    """Raise ConfigError unless `layout` is that of the library `c`, as far as its default parameters can tell."""
    evidence = _version_evidence(c, layout)
    for function, structure in (
        ("llama_model_default_params", layout.model_params),
        ("llama_context_default_params", layout.context_params),
    ):
        evidence += _size_evidence(c, function, structure) + _value_evidence(c, function, structure)
    if evidence:
        raise ConfigError(
            f"the struct layout does not fit the libllama of {provider}: {'; '.join(evidence[:4])}",
            hint=f"install the build that the layout belongs to: {INSTALL_HINT}",
        )


def _version_evidence(c: Any, layout: Layout) -> list[str]:  # noqa: ANN401
    version = c.llama_version().decode()
    if layout.version is None or version == layout.version:
        return []
    return [f"llama.cpp is version {version}, the layout is for {layout.version}"]


def _size_evidence(c: Any, function: str, structure: type[ctypes.Structure]) -> list[str]:  # noqa: ANN401
    """Compare the struct size with the bytes written by the library.

    On x86-64 a large struct is returned through a hidden pointer passed as the first argument, so a function that
    returns one can be called as one that takes a buffer. Elsewhere the ABI differs, and only the values are compared.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return []
    room, mark = 4096, 0xA5
    buffer = (ctypes.c_ubyte * room)(*[mark] * room)
    ctypes.CFUNCTYPE(None, _pointer)(_address(c, function))(ctypes.addressof(buffer))
    written = max((index + 1 for index in range(room) if buffer[index] != mark), default=0)
    size, padding = ctypes.sizeof(structure), ctypes.alignment(structure)
    if size - padding < written <= size:
        return []
    return [f"{function} writes {written} bytes into a struct of {size}"]


def _value_evidence(c: Any, function: str, structure: type[ctypes.Structure]) -> list[str]:  # noqa: ANN401
    class Guarded(ctypes.Structure):
        _fields_ = (("params", structure), ("guard", ctypes.c_ubyte * 1024))

    params: Any = ctypes.CFUNCTYPE(Guarded)(_address(c, function))().params
    return [
        f"{function} says {name} = {getattr(params, name, None)!r}, not {expected!r}"
        for name, expected in _PLAUSIBLE[function].items()
        if getattr(params, name, None) != expected
    ]


def _address(c: Any, function: str) -> int:  # noqa: ANN401
    return ctypes.cast(getattr(c, function), _pointer).value or 0


_opened: dict[str, Native] = {}


def open_native(provider: str | None = None) -> Native:
    """Return the libllama of `provider` (a name of `PROVIDERS`, or a path), opened once a process.

    `None` reads the environment variable `SETPOINT_LLAMA`, and else is `auto`: llama-cpp-python when it is installed,
    otherwise xllamacpp. Raises ConfigError when it is not there or does not fit.
    """
    name = provider or os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if name == "auto":
        name = "llama-cpp-python" if importlib.util.find_spec("llama_cpp") else "xllamacpp"
    if name not in _opened:
        opener = {"xllamacpp": _open_xllamacpp, "llama-cpp-python": _open_llama_cpp_python}.get(name)
        _opened[name] = opener() if opener else _open_path(name)
    return _opened[name]


def _calm_openmp() -> None:
    """Let the threads of llama.cpp sleep soon when they wait for each other, unless the user has decided otherwise.

    By default they spin for milliseconds at every barrier. On a core that another process wants (a load generator, say)
    each barrier then lasts a whole time slice, which made steps 15 times slower. Read when the library is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _open_xllamacpp() -> Native:
    _calm_openmp()
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("no llama.cpp is installed", hint=INSTALL_HINT)
    version = importlib.metadata.version("xllamacpp")
    if version != XLLAMACPP_VERSION:
        raise ConfigError(
            f"xllamacpp {version} is installed, but the struct layout is that of {XLLAMACPP_VERSION}", hint=INSTALL_HINT
        )
    folder = Path(spec.submodule_search_locations[0])
    libraries = sorted(path for path in folder.glob("xllamacpp.*") if path.suffix in {".so", ".pyd"})
    if not libraries:
        raise ConfigError(f"xllamacpp at {folder} has no extension module", hint=INSTALL_HINT)
    return Native(libraries[0], B11549, provider="xllamacpp", version=version)


def _open_llama_cpp_python() -> Native:
    _calm_openmp()
    try:
        module = importlib.import_module("llama_cpp.llama_cpp")
    except ImportError as error:
        raise ConfigError(f"llama-cpp-python cannot be imported: {error}", hint=INSTALL_HINT) from error
    except Exception as error:  # its module body opens a shared library and may fail in many ways
        raise EngineError(f"llama-cpp-python does not start: {error}", hint=INSTALL_HINT) from error
    version = importlib.metadata.version("llama-cpp-python")
    library = Path(module._lib._name)  # noqa: SLF001 - it offers no other way to learn which library it opened
    return Native(library, layout_of_module(module), provider="llama-cpp-python", version=version)


def _open_path(name: str) -> Native:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"{name!r} is neither a provider nor a file", hint=f"choose one of {', '.join(PROVIDERS)}, or give a path"
        )
    return Native(path, B11549, provider=str(path), version="own build")
