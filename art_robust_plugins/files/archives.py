"""Zip archives of `torch.save`, looked through before torch opens them: how much they declare, and what they call.

``torch.load(weights_only=True)`` runs no code of the file, but some of what it allows makes objects of any size:
compressed or overlapping members, ``bytearray(n)``, a view that repeats one number for ever. None of these is in an
archive that `torch.save` writes of tensors, numbers and text.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from .strict_json import DEPTH_LIMIT, UnfitError, depth_of

_NAMES = re.compile(
    r"(torch\._utils _rebuild_tensor_v[23]|collections OrderedDict|_codecs encode|torch \w+Storage|torch \w*\d\w*)"
)
"""The names in the pickle of plain data: how tensors are put together, their types, and how bytes are written."""
_GROWING = {"hex", "hexcodec", "bz2", "bz2codec", "zip", "zlib", "zlibcodec", "base64", "base64codec"}
_GROWING |= {"quopri", "quopricodec", "quotedprintable", "uu", "uucodec"}
"""Codecs that can be applied to their own output; torch writes bytes as latin1."""


def check_archive(path: Path) -> None:
    """Refuse an archive that would be larger in memory than as a file, or that is damaged.

    Raises:
        UnfitError: for such an archive.
        zipfile.BadZipFile: it is no zip archive.
        UnpicklingError: it names something else than plain data.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UnfitError("a zip archive with compressed members, which torch.save does not write,")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise UnfitError("a zip archive that declares more bytes than it has")
        names = [member.filename for member in members]
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) < len(names):
            raise UnfitError("a zip archive")
        if archive.testzip() is not None:  # torch.load does not look at the checksums
            raise UnfitError("a zip archive cut short or damaged")
        _check_pickle(archive.read(pickles[0]))


def check_state(value: Any) -> None:
    """Refuse what `save_state` does not write: nesting without end, tensors larger than their memory, other objects.

    Raises:
        UnfitError: for such data.
    """
    if depth_of(value) > DEPTH_LIMIT:
        raise UnfitError(f"data nested more than {DEPTH_LIMIT} deep")
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list | tuple):
            if id(each) not in seen:
                seen.add(id(each))
                waiting += [*each, *each.values()] if isinstance(each, dict) else each
        elif isinstance(each, Tensor):
            whole = each.layout is not None and each.numel() * each.element_size() <= _bytes_of(each)
            if not whole:
                raise UnfitError(f"a tensor of shape {tuple(each.shape)} that is larger than its memory")
        elif not (each is None or isinstance(each, bool | int | float | str | bytes)):
            raise UnfitError(f"an object of the type {type(each).__name__}")


def _bytes_of(tensor: Tensor) -> int:
    """The memory behind a dense tensor on the CPU; of any other there is none to speak of."""
    return tensor.untyped_storage().nbytes() if tensor.device.type == "cpu" and not tensor.is_sparse else 0


def _check_pickle(content: bytes) -> None:
    encodes = False
    texts: set[str] = set()
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("GLOBAL", "INST") and not _NAMES.fullmatch(str(argument)):
            raise UnpicklingError(str(argument))
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise UnpicklingError(operation.name)
        encodes |= operation.name == "GLOBAL" and argument == "_codecs encode"
        if isinstance(argument, str):
            texts.add(re.sub(r"[^a-z0-9]", "", argument.lower()))
    if encodes and texts & _GROWING:
        raise UnpicklingError("_codecs encode")
