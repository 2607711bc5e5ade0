"""Checkpoints: everything that a run needs to continue bit for bit, in one file that is either whole or refused.

A checkpoint is an ``.npz`` archive without pickles; ``numpy.load`` reads it. Its members are

- ``metadata``: JSON as bytes: format, version, step, the run's configuration, its classes, its random streams;
- ``model/NAME`` for each parameter and buffer, ``optimizer/NAME`` for each array of the optimiser;
- ``sha256``: the digest of all members before it, names and contents.

Nothing in it depends on when or where it was written: equal runs write equal files.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arrays import Array, to_host
from refnet.data import KeypointScheme
from refnet.errors import CheckpointError
from refnet.weights.archive import first_name
from refnet.whole_file import whole_file

FORMAT = "refnet checkpoint"
VERSION = 1
KEEP = 2  # the newest, and the one before it in case the newest gets damaged

_FIRST = 64  # bytes that hold the name of the first member
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can express, for all members


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: how many steps are finished.
        model: the parameters and buffers by name.
        optimizer: the arrays of the optimiser by name.
        config: the run's configuration, as :func:`refnet.train.config_file.to_document` writes it.
        class_names, category_ids: what class k, at position k - 1, is called, and its COCO category.
        keypoints: what the keypoints of the objects are called; None if the dataset has none.
        random: what the random streams are made of, JSON.
    """

    step: int
    model: Mapping[str, Array]
    optimizer: Mapping[str, Array]
    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    random: Mapping[str, Any]
    keypoints: KeypointScheme | None = None


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into `directory` and delete all but the newest two.

    At every moment, also if the process is killed or the machine loses power, the directory holds the last complete
    checkpoint.

    Returns:
        The file, ``step-00000100.npz`` after 100 steps.

    Raises:
        CheckpointError: the disk is full, or the directory can't be written.
    """
    path = directory / f"step-{checkpoint.step:08d}.npz"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, checkpoint)
        for old in [*checkpoints(directory)[:-KEEP], *directory.glob("*.partial")]:
            old.unlink()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: can't be written: {error}") from error
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` as the file `path`, whole or not at all.

    Raises:
        CheckpointError: the disk is full, or the file can't be written.
    """
    try:
        with whole_file(path) as file:
            _write(file, checkpoint)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: can't be written: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as a checkpoint does; one of another program, or none, doesn't."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return first_name(file.read(_FIRST)) == "metadata.npy"


def _write(file: Any, checkpoint: Checkpoint) -> None:
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "class_names": checkpoint.class_names,
        "category_ids": checkpoint.category_ids,
        "random": checkpoint.random,
    }
    if checkpoint.keypoints is not None:
        metadata["keypoints"] = {"names": checkpoint.keypoints.names, "skeleton": checkpoint.keypoints.skeleton}
    text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    members = {"metadata": np.frombuffer(text.encode(), np.uint8)}
    members |= {f"model/{name}": to_host(array) for name, array in checkpoint.model.items()}
    members |= {f"optimizer/{name}": to_host(array) for name, array in checkpoint.optimizer.items()}
    digest = hashlib.sha256()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            content = _npy(array)
            _digest(digest, f"{name}.npy", content)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), content)
        content = _npy(np.frombuffer(digest.digest(), np.uint8))
        archive.writestr(zipfile.ZipInfo("sha256.npy", _DATE), content)


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
    return buffer.getvalue()


def _digest(digest: Any, name: str, content: bytes) -> None:
    for part in (name.encode(), content):
        digest.update(len(part).to_bytes(8, "little"))  # so that no two sequences of members have the same bytes
        digest.update(part)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest. No code in the file is run: it holds arrays and JSON only.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it isn't a checkpoint of this version.
    """
    try:
        members = _read(path)
        metadata = json.loads(members.pop("metadata").tobytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path}: there is no such file") from error
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"checkpoint {path}: the file is damaged or no checkpoint: {error}") from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"checkpoint {path}: expected {FORMAT!r} version {VERSION}, "
            f"got {metadata.get('format')!r} version {metadata.get('version')!r}"
        )
    scheme = metadata.get("keypoints")
    return Checkpoint(
        step=metadata["step"],
        model=_under("model/", members),
        optimizer=_under("optimizer/", members),
        config=metadata["config"],
        class_names=tuple(metadata["class_names"]),
        category_ids=tuple(metadata["category_ids"]),
        random=metadata["random"],
        keypoints=None
        if scheme is None
        else KeypointScheme(names=tuple(scheme["names"]), skeleton=tuple((a, b) for a, b in scheme["skeleton"])),
    )


def _read(path: Path) -> dict[str, Array]:
    members = {}
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        *names, last = archive.namelist()
        if last != "sha256.npy":
            raise ValueError("the digest is missing")
        for name in names:
            content = archive.read(name)
            _digest(digest, name, content)
            members[name.removesuffix(".npy")] = _array(content)
        expected = _array(archive.read(last)).tobytes()
    if digest.digest() != expected:
        raise ValueError(f"its digest should be {expected.hex()}, got {digest.hexdigest()}")
    return members


def _array(content: bytes) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array


def _under(prefix: str, members: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in members.items() if name.startswith(prefix)}


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in `directory`, oldest first."""
    return sorted(directory.glob("step-????????.npz"))


def load_newest(directory: Path) -> tuple[Path, Checkpoint]:
    """The newest checkpoint in `directory`, with its path.

    Choice: a damaged checkpoint is an error and not passed over for the one before it: a run that silently restarts
    from earlier, or an evaluation of older weights, would be mistaken for the real thing. The message names the one
    before it.

    Raises:
        CheckpointError: there is none, or the newest is damaged.
    """
    found = checkpoints(directory)
    if not found:
        raise CheckpointError(f"checkpoints: expected a file step-*.npz in {directory}, found none")
    try:
        return found[-1], load_checkpoint(found[-1])
    except CheckpointError as error:
        if len(found) == 1:
            raise
        raise CheckpointError(f"{error}; delete it to use the one before it, {found[-2]}") from error
