"""What a merge has done so far, on the disk: one that is killed goes on from there."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import jax

from aya_jax.data.files import sync_directory, told_plainly

NAME = "merge.journal"

Sums = Mapping[str, Mapping[str, str]]


class Journal:
    """Lists the tensors that are on the disk, with the checksums of what each is in.

    Every process writes a file of its own, a line a tensor, each line with its checksum: what was not
    written whole when the process was killed does not count. All processes read all files. Inside the
    context manager it can be added to.
    """

    def __init__(self, directory: Path, key: str) -> None:
        """Take the place of the journal.

        Args:
          directory: the folder that the merge fills.
          key: says what is merged, and how; entries of another merge do not count.
        """
        self.directory, self.key = directory, key

    def __enter__(self) -> "Journal":
        path = self.directory / f"{NAME}.{jax.process_index()}"
        with told_plainly(path):
            self._file = open(path, "ab")
            # What was not written whole must not run into the next line.
            self._file.write(b"\n")
            self._sync()
            sync_directory(self.directory)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def add(self, sums: Sums) -> None:
        """Note tensors that are on the disk: the checksums of what each is in, by its name."""
        with told_plainly(self.directory / NAME):
            for name, each in sums.items():
                text = json.dumps([self.key, name, dict(each)])
                self._file.write(f"{_checksum(text)} {text}\n".encode())
            self._sync()

    def read(self) -> dict[str, dict[str, str]]:
        """Return what was added, of all processes."""
        found = {}
        for path in sorted(self.directory.glob(f"{NAME}.*")):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                checksum, _, text = line.partition(" ")
                if text and checksum == _checksum(text):
                    key, name, sums = json.loads(text)
                    if key == self.key:
                        found[name] = sums
        return found

    def remove(self) -> None:
        """Remove the files of all processes."""
        for path in self.directory.glob(f"{NAME}.*"):
            path.unlink()


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
