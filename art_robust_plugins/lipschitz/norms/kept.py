"""Proven norms kept in a folder, by the digest of weight and geometry; see `configure_proofs` for whom that trusts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

from ...checks import to_float
from ...files.sealed import read_sealed, write_sealed
from ...fingerprints import digest
from .geometry import ConvolutionMap
from .power_iteration import lower_estimate

FORMAT = "art-robust-plugins norm 1"
"""The version of the proof: it changes with the proof, so that an older one is not taken for a newer one."""


def keep_bound(operator: ConvolutionMap, folder: Path | None, prove: Callable[[], float]) -> float:
    """The bound that ``prove`` gives for a convolution of one group, or gave before; inf, no proof, is not kept.

    Raises:
        ValueError: for a file in the folder that was changed, or holds a number that is no bound of this convolution.
    """
    if folder is None:
        return prove()
    geometry = (
        operator.input_shape,
        operator.stride,
        operator.padding,
        operator.dilation,
        operator.transposed,
        operator.output_padding,
        operator.padding_mode,
    )
    key = digest(FORMAT, repr(geometry), operator.weight)
    path = folder / f"norm-{key}.json"
    if path.exists():
        try:
            record = read_sealed(path, FORMAT)
        except ValueError as error:  # cut off or changed
            raise ValueError(f"{str(error).removesuffix('.')}; delete the file.") from error
        found = record.get("bound")
        if record.get("key") != key:  # a file that was copied or renamed
            raise ValueError(f"{path}: key: got {record.get('key')!r}, expected {key!r}; delete the file.")
        least = float(lower_estimate(operator, steps=20)[0]) * (1 - 1e-9)
        if not least <= to_float(found) < math.inf:
            raise ValueError(f"{path}: bound: got {found!r}, expected a number from {least:.6g} on; delete the file.")
        return to_float(found)
    bound = prove()
    if math.isfinite(bound):
        try:
            write_sealed(path, {"format": FORMAT, "key": key, "bound": bound})
        except OSError as error:  # the bound was proven, and holds all the same
            warnings.warn(f"cache_dir: {path} cannot be written ({error}): this norm is not kept.", stacklevel=2)
    return bound
