"""Whole files or none: atomic writes, atomic directories and fingerprints."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aya_jax.errors import AyaError


def _errno(error: BaseException | None) -> int | None:
    """Return the system's number behind an error, None if there is none.

    gin raises a copy of what it caught, without its number, and TensorStore a `ValueError`.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code:
            return int(code[1])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def told_plainly(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at `path` into one-line `AyaError`s.

    Raises:
      AyaError: the disk is full, or the place not writable, a folder, or without one above it. Any
        other exception passes through.
    """
    try:
        yield
    except AyaError:
        raise
    except Exception as error:
        number = _errno(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise AyaError(f"{path}: the disk is full; free some space and run it again") from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AyaError(f"{path}: cannot be written; check the permissions") from None
        if number == errno.EISDIR:
            raise AyaError(f"{path}: is a folder; give another place") from None
        if number in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST) and not path.parent.is_dir():
            if any(place.is_file() for place in path.parents):
                raise AyaError(f"{path}: lies under a file; give another place") from None
            raise AyaError(f"{path}: its folder does not exist; create it first") from None
        raise


def require_space(directory: Path, size: int) -> None:
    """Raise `AyaError` unless the disk of `directory` has `size` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise AyaError(
            f"{directory}: the disk is full: {size / 2**20:,.1f} MiB are needed and "
            f"{free / 2**20:,.1f} free; free some space and run it again"
        )


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            with open(Path(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))


@contextmanager
def _claimed(partial: Path) -> Iterator[bool]:
    """Claim what is being filled; yield whether it was nobody's.

    The system drops a claim with its process, on whatever host. Where the file system has no locks the
    answer is False.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def _clear_killed(path: Path) -> None:
    """Remove what killed processes have left beside `path` in making it."""
    left = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    # What another user left, or another process removes at this moment, is not in our way.
    with suppress(OSError):
        for partial in map(path.with_name, filter(left.fullmatch, os.listdir(path.parent))):
            with suppress(OSError), _claimed(partial) as free:
                if free and partial.is_dir():
                    shutil.rmtree(partial)
                elif free:
                    partial.unlink()


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Write a file under another name beside its place, and rename it there when it is whole.

    What killed processes left of it under such names is removed.

    Raises:
      AyaError: the disk is full, or the folder is missing or not writable.
    """
    path = Path(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with told_plainly(path):
        _clear_killed(path)
        try:
            with open(partial, "wb") as file, _claimed(partial):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            sync_directory(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def commit_directory(partial: Path, path: Path, *, replace: bool = False) -> None:
    """Rename the whole directory `partial` to `path`, its content on the disk first.

    Where `path` is replaced there are two renames: who is killed between them finds the old content
    whole beside `path`, under a name that ends in `.old`.

    Raises:
      AyaError: `path` exists and `replace` is False, the disk is full, or the place not writable.
    """
    with told_plainly(path):
        _sync_tree(partial)
        if path.exists():
            if not replace:
                raise AyaError(f"{path}: exists already; remove it or give another place")
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.rename(path, old)
            os.rename(partial, path)
            shutil.rmtree(old)
        else:
            os.rename(partial, path)
        sync_directory(path.parent)


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; it takes the name `path` when the block ends, and is removed if not.

    What killed processes left of it is removed first.

    Raises:
      AyaError: `path` exists and `replace` is False, the disk is full, or the place not writable.
    """
    path = Path(path).absolute()
    if path.exists() and not replace:
        raise AyaError(f"{path}: exists already; remove it or give another place")
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with told_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_killed(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with _claimed(partial):
                yield partial
                commit_directory(partial, path, replace=replace)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def fingerprint(value: Any) -> str:
    """Return the sha256, in hexadecimal, of a JSON-able value in canonical form.

    The order of keys does not matter, and a tuple counts as a list.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def stable_hash(*parts: object) -> int:
    """Return 64 bits that follow from the parts alone: for draws that no order of work changes."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def fingerprint_file(path: str | Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
