"""Decodes the image files of a labelled task."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxtransfer.data.probe import check_images, decoding
from jaxtransfer.errors import JaxTransferError


class DecodedFiles(NamedTuple):
    """Holds the images of the files that could be used.

    Attributes:
        images: RGB values 0 to 255.
        indices: Index of the file of every image.
        hashes: SHA-256 of the content of the file of every image.
        skipped: Name and reason of every file that could not be used.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    indices: Int[np.ndarray, " n"]
    hashes: list[str]
    skipped: tuple[tuple[str, str], ...]


def digest_of_files(hashes: Sequence[str], labels: Sequence[bytes], groups: np.ndarray | None = None) -> str:
    """Returns the SHA-256 over the images and labels of a task, and over the groups of its images if it has any.

    Args:
        hashes: SHA-256 of the content of the file of every image.
        labels: Bytes that stand for the label of every image.
        groups: Group of every image, as text.
    """
    digest = hashlib.sha256()
    for content_hash, label in zip(hashes, labels, strict=True):
        digest.update(f"{content_hash}  ".encode() + label + b"\n")
    if groups is not None:
        digest.update("\n".join(groups.tolist()).encode())
    return digest.hexdigest()


def decode_files(
    folder: Path,
    files: Sequence[Path],
    size: int,
    *,
    limit: int | None,
    strict: bool,
    skipped: Sequence[tuple[str, str]],
) -> DecodedFiles:
    """Decodes files until `limit` of them could be used.

    Args:
        folder: Folder of the files.
        files: Paths relative to the folder.
        size: Height and width of the result in pixels.
        limit: Most images; None: all.
        strict: Whether a file that cannot be used is an error.
        skipped: Name and reason of the files of the folder that cannot be used for other reasons.

    Raises:
        JaxTransferError: A file cannot be used, and `strict` is True.
    """
    skipped = [*skipped]
    count = min(len(files), limit or len(files))
    check_images(count, size)
    images, indices, hashes = np.empty((count, size, size, 3), np.uint8), [], []
    with decoding(folder, files, size) as decoded_files:
        for index, (name, decoded) in enumerate(decoded_files):
            if isinstance(decoded, str):
                skipped.append((name, decoded))
            else:
                images[len(indices)], content_hash = decoded
                indices.append(index)
                hashes.append(content_hash)
            if (skipped and strict) or len(indices) == limit:
                break
    if skipped and strict:
        name, reason = skipped[0]
        raise JaxTransferError(f"{folder / name} cannot be used as an image with a label: {reason}.")
    return DecodedFiles(images[: len(indices)], np.array(indices, int), hashes, tuple(skipped))
