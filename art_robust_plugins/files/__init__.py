"""Files that survive a killed process, and that never run code when they are read.

Tensors are safetensors, descriptions are JSON, training state is a `torch.save` archive read with ``weights_only``.
Every file is written beside its place and then moved there, so that a reader meets the old file or the new one.
A file may come from anyone: what it declares is compared with what it holds, before it takes memory or time. This room
knows no classifier.
"""

from .entries import Entry, shorten
from .json_files import json_text, read_json, write_json
from .npz import read_npz
from .reading import regular_file, sha256_of
from .sealed import read_sealed, seal, write_sealed
from .states import load_state, save_archive, save_state
from .strict_json import DEPTH_LIMIT, depth_of
from .tensors import load_tensors, save_tensors
from .writing import remove_temporaries, target_of_temporary, write_atomically

__all__ = [
    "DEPTH_LIMIT",
    "Entry",
    "depth_of",
    "json_text",
    "load_state",
    "load_tensors",
    "read_json",
    "read_npz",
    "read_sealed",
    "regular_file",
    "remove_temporaries",
    "save_archive",
    "save_state",
    "save_tensors",
    "seal",
    "sha256_of",
    "shorten",
    "target_of_temporary",
    "write_atomically",
    "write_json",
    "write_sealed",
]
