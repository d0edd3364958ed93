"""A tokenizer whose tokens are single bytes, written as the files that the peers' libraries read.

The peers want a tokenizer, and none is to be had without a network; against a server that only counts, any will do.
"""

import json
from pathlib import Path


def alphabet() -> list[str]:
    """Return the 256 characters that stand for the bytes in byte-level vocabularies (the table of GPT-2), sorted."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [256 + index for index in range(256 - len(plain))]
    return [chr(code) for code in sorted([*plain, *others])]


def write_byte_tokenizer(folder: Path) -> Path:
    """Write the tokenizer into a new folder, and return it."""
    bytes_ = alphabet()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": 1, "content": bytes_[1], "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {one: index for index, one in enumerate(bytes_)}, "merges": []},
    }
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": bytes_[1], "pad_token": bytes_[1]}
    folder.mkdir()
    for name, value in (("tokenizer", tokenizer), ("tokenizer_config", told), ("config", {"model_type": "gpt2"})):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder
