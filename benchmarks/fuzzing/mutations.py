"""Damage to files: of any kind, of JSON, of safetensors, and of the zip archives that torch writes."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any, NamedTuple

HUGE = 10**400
_NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 9, 0.5, 1e308, -1e-9, 2**31, 2**63, HUGE, float("nan"), float("inf"))
_TEXTS = ("", "x", "0.5", "__import__('os')", "<script>alert(1)</script>", "=1+1", "../../x", "\x00", "é" * 300)


class Damage(NamedTuple):
    """A file's new content (None: the file is gone), what was done, and whether its checksums are valid again."""

    content: bytes | None
    text: str
    forged: bool = False


def damage(rng: random.Random, name: str, content: bytes) -> Damage:
    """One random damage to a file of this name, of which some are possible for its kind alone."""
    special = {".json": damage_json, ".safetensors": damage_safetensors, ".pt": damage_archive}
    suffix = name[name.rindex(".") :]
    own = special.get(suffix)
    if own is not None and rng.random() < 0.7:
        return own(rng, content)
    return damage_bytes(rng, content)


def damage_bytes(rng: random.Random, content: bytes) -> Damage:
    """Bytes changed, lost, or added, as by a bad disk or a broken download."""
    data, size = bytearray(content), len(content)
    kind = rng.choice(["flip", "flip", "byte", "truncate", "extend", "zeros", "swap", "cut", "empty", "gone"])
    at = rng.randrange(size)
    if kind == "flip":
        places = [rng.randrange(size) for _ in range(rng.randint(1, 4))]
        for place in places:
            data[place] ^= 1 << rng.randrange(8)
        return Damage(bytes(data), f"bits flipped at {places}")
    if kind == "byte":
        data[at] = rng.randrange(256)
    elif kind == "truncate":
        del data[at:]
    elif kind == "extend":
        data += rng.randbytes(rng.choice([1, 7, 4096]))
    elif kind == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "swap":
        data = data[at:] + data[:at]
    elif kind == "cut":
        del data[at : at + rng.randint(1, 64)]
    elif kind == "empty":
        data.clear()
    else:
        return Damage(None, "the file is gone")
    return Damage(bytes(data), f"{kind} at {at} of {size}")


def damage_json(rng: random.Random, content: bytes) -> Damage:
    """A value changed, or text that JSON readers take in different ways."""
    text = content.decode()
    if rng.random() < 0.25:
        digits = [place for place, letter in enumerate(text) if letter.isdigit()]
        kind = rng.choice(["digit", "digit", "deep", "utf-16", "twice", "number"])
        if kind == "deep":
            return Damage((f'{{"a": {"[" * 100_000}{"]" * 100_000}, ' + text.lstrip()[1:]).encode(), "deep nesting")
        if kind == "utf-16":
            return Damage(text.encode("utf-16"), "as UTF-16")
        if kind == "twice":
            return Damage((text + text).encode(), "the content twice")
        if kind == "number":
            return Damage(b"17", "a number alone")
        at = rng.choice(digits)
        digit = rng.choice([d for d in "0123456789" if d != text[at]])
        return Damage(
            (text[:at] + digit + text[at + 1 :]).encode(),
            f"digit {text[at]} to {digit} at {at}: {text[max(0, at - 60) : at + 20]!r}",
        )
    data = json.loads(text)
    data, what = _changed(rng, data)
    return Damage(json.dumps(data, indent=2).encode(), what)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    held = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, entry in held for found in _paths(entry, (*path, key)))]


def _changed(rng: random.Random, data: Any) -> tuple[Any, str]:
    path = rng.choice(_paths(data)[1:])
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    key, value = path[-1], owner[path[-1]]
    place = ".".join(map(str, path))
    kind = rng.choice(["value", "value", "value", "drop", "rename", "nest", "add"])
    if kind == "drop" or (kind in ("rename", "add") and not isinstance(owner, dict)):
        del owner[key]
        return data, f"{place} dropped"
    if kind == "rename":
        owner[f"{key}_"] = owner.pop(key)
        return data, f"{place} renamed"
    if kind == "add":
        owner["unknown"] = rng.choice([1, "x", None, []])
        return data, f"a key added beside {place}"
    if kind == "nest":
        owner[key] = rng.choice([[value], {"a": value}, [[value, value]]])
        return data, f"{place} nested"
    owner[key] = _other_value(rng, value)
    return data, f"{place} from {value!r} to {owner[key]!r}"[:300]


def _other_value(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return rng.choice([not value, int(value), str(value), None])
    if isinstance(value, int | float):
        near = [value + 1, -value, value * 2, value * 1.01, float(value) + 0.001]
        return rng.choice([*near, *near, *_NUMBERS, str(value), None, [value], True])
    if isinstance(value, str):
        return rng.choice([*_TEXTS, value[:-1], value + "x", value.swapcase(), 3, None, [value]])
    if isinstance(value, list):
        return rng.choice([[], value[:-1], value + value[-1:], value[::-1], {}, "x", None, 0, [None] * len(value)])
    if isinstance(value, dict):
        return rng.choice([{}, [], "x", None, 0, dict(list(value.items())[:-1])])
    return rng.choice([0, 1, "x", [], {}, False])


def damage_safetensors(rng: random.Random, content: bytes) -> Damage:
    """The header changed: names, types, shapes, places, or its own length."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = rng.choice(["length", "header", "header", "type", "shape", "huge", "names"])
    if kind == "length":
        wrong = rng.choice([0, length - 1, length + 8, 2**40, 2**63])
        return Damage(struct.pack("<Q", wrong) + content[8:], f"header length {wrong}")
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    what = kind
    if kind == "header":
        header, what = _changed(rng, header)
    elif kind == "type":
        entry["dtype"] = rng.choice(["F16", "BF16", "I32", "U8", "F64", "BOOL", "F8_E4M3"])
    elif kind == "shape":
        entry["shape"] = entry["shape"][::-1]
    elif kind == "huge":
        entry["shape"] = [2**40, 2**20]
        entry["data_offsets"] = [0, 2**62]
    else:
        other = rng.choice(names)
        header[other]["data_offsets"], entry["data_offsets"] = entry["data_offsets"], header[other]["data_offsets"]
    text = json.dumps(header).encode()
    return Damage(struct.pack("<Q", len(text)) + text + data, f"safetensors header: {what}")


class _Runs:
    """What a pickle that runs code looks like."""

    def __reduce__(self) -> Any:
        return exec, ("import builtins; builtins.fuzzing_ran_code = True",)


def damage_archive(rng: random.Random, content: bytes) -> Damage:
    """The zip archive written anew: members dropped, renamed, changed, packed, or said to be huge."""
    import pickle

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    packing, forged = zipfile.ZIP_STORED, True
    kind = rng.choice(["drop", "rename", "change", "code", "packed", "twice", "huge", "shorter", "bomb"])
    if kind == "huge":
        at = content.rindex(b"PK\x01\x02")
        sizes = struct.pack("<II", 2**32 - 2, 2**32 - 2)
        return Damage(content[: at + 20] + sizes + content[at + 28 :], "a member said to be huge")
    if kind == "drop":
        del members[name]
    elif kind == "rename":
        members[f"{name}x"] = members.pop(name)
    elif kind == "change":
        changed = bytearray(members[name] or b"x")
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        members[name] = bytes(changed)
    elif kind == "code":
        name = next(each for each in members if each.endswith("data.pkl"))
        members[name] = pickle.dumps(_Runs(), protocol=2)
    elif kind == "shorter":
        members[name] = members[name][: len(members[name]) // 2]
    elif kind == "packed":
        packing = zipfile.ZIP_DEFLATED
    elif kind == "bomb":
        name = next((each for each in members if "/data/" in each), name)
        members[name], packing = bytes(2**28), zipfile.ZIP_DEFLATED
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", packing) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        if kind == "twice":
            archive.writestr(name, members[name][::-1])
    return Damage(written.getvalue(), f"archive written anew: {kind} {name}", forged)
