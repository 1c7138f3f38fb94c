"""Folders that results are written to: whether they can be, and that one process at a time does.

A lock is the operating system's (``flock``) on a small file in the folder. It ends with the process that holds it,
however that ends. On network file systems it holds between machines where the server supports it (NFS does since
version 4); where a file system has no locks, a warning says so. On Windows only processes of one machine exclude each
other, too.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import target_of_temporary

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCK = "art-robust.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


class FolderInUseError(OSError):
    """Another process, or another thread of this one, writes its results to the same folder."""


@contextmanager
def locked_folder(name: str, folder: str | Path, purpose: str) -> Iterator[None]:
    """A context within which nobody else holds ``folder`` for the same ``purpose``; it is made when it is missing.

    Args:
        name: of the argument that gives the folder, for the sentences.
        folder: if it was made here and is still empty at the end, it is removed again.
        purpose: a word, such as ``"training"``.

    Raises:
        FolderInUseError: somebody holds it.
        ValueError: the folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> with locked_folder("out", tempfile.mkdtemp(), "training"):
        ...     pass  # nobody else trains into this folder
    """
    folder = Path(folder)
    with _made_folder(name, folder):
        path = folder / f".{purpose}.{_LOCK}"
        file = _lock(name, folder, path)
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            if sys.platform == "win32":
                os.close(file)  # an open file cannot be removed there
            path.unlink(missing_ok=True)  # while it is held: whoever comes next makes a new one
            if sys.platform != "win32":
                os.close(file)


def check_output_folder(name: str, folder: str | Path, files: Collection[str] = ()) -> None:
    """Refuse a folder that cannot be made or written to, by trying it, before there is anything to write.

    Args:
        name: of the argument.
        folder: is left as it was.
        files: names of those that will be written there.

    Raises:
        ValueError: it cannot, or a folder stands in the place of a file.
    """
    folder = Path(folder)
    with _made_folder(name, folder):
        _attempt(name, folder, lambda: _write_and_remove(folder / "probe"))
        for file in files:
            if os.path.isdir(folder / file):
                raise ValueError(f"{name}: got {folder}, where {file} is a folder, expected a file or nothing there.")


def check_output_file(name: str, path: str | Path) -> None:
    """Refuse a file that cannot be written, by trying it.

    Raises:
        ValueError: its folder cannot be made or written to, or a folder stands there.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ValueError(f"{name}: got {path}, which is a folder, expected a file.")
    with _made_folder(name, path.parent):
        _attempt(name, path, lambda: _write_and_remove(path))


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds only temporary files and locks that killed processes left."""
    if not folder.exists():
        return True
    return all(target_of_temporary(each.name) or each.name.endswith(f".{_LOCK}") for each in folder.iterdir())


@contextmanager
def _made_folder(name: str, folder: Path) -> Iterator[None]:
    """A context with the folder; those of its parents that were made for it, and hold nothing, are removed again."""
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        _attempt(name, folder, lambda: folder.mkdir(parents=True, exist_ok=True))
        yield
    finally:
        for each in filter(os.path.isdir, made):
            try:
                each.rmdir()
            except OSError:  # it holds something
                break


def _write_and_remove(path: Path) -> None:
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")  # as `write_atomically` names it
    temporary.write_bytes(b"")
    temporary.unlink()


def _attempt(name: str, path: Path, work: Callable[[], object]) -> None:
    try:
        work()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        blocking = next((each for each in (path, *path.parents) if in_the_way and _is_file(each)), None)
        reason = f"{blocking} is a file" if blocking is not None else getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name}: got {path}, which cannot be written to ({reason}), expected another.") from error


def _is_file(path: Path) -> bool:
    try:
        return os.path.lexists(path) and not path.is_dir()
    except (OSError, ValueError):
        return False


def _lock(name: str, folder: Path, path: Path) -> int:
    """The descriptor of the lock's file, which holds the lock until it is closed."""
    opened: list[int] = []
    while True:
        _attempt(name, folder, lambda: opened.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o666)))
        file = opened.pop()
        try:
            if sys.platform == "win32":
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{name}: the file system of {folder} has no locks ({error.strerror}); see to it that one process "
                    f"at a time writes there.",
                    stacklevel=2,
                )
                return file
            holder = os.read(file, 20).decode("ascii", "replace")
            os.close(file)
            raise FolderInUseError(
                f"{name}: {folder} is in use by {f'process {holder}' if holder else 'another process'}, expected "
                f"another folder, or that process to end first."
            ) from error
        if sys.platform == "win32" or _is_at(file, path):
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            return file
        os.close(file)  # its holder removed it as it was opened here


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _forget_locks() -> None:
    """Release the locks in a forked child, such as a loader's worker: it must not hold those of a parent that died."""
    for file in _held:
        os.close(file)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks)
