"""Fetches packages with the clients of their registries, checks them, and reads files out of them."""

import functools
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.wild.settings import Package
from jaxtransfer.errors import JaxTransferError

_MAX_BYTES = 200 * 2**20  # of a file; the largest that is needed has 98 MB
Run = Callable[[Sequence[str], Path], None]
"""Runs a client, given its arguments and the folder it writes into."""


def run_client(arguments: Sequence[str], folder: Path) -> None:
    """Runs a package client in a folder.

    Raises:
        JaxTransferError: The client does not exist, or ends with an error.
    """
    try:
        subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise JaxTransferError(f"{arguments[0]} is needed to fetch packages, and is not installed.") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise JaxTransferError(f"{' '.join(arguments)} failed: {last}") from error


def client_arguments(package: Package) -> list[str]:
    """Returns the command that writes a package's archive into the current folder."""
    match package.registry:
        case "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            return [*pip, "--dest", ".", f"{package.name}=={package.version}"]
        case "npm":
            return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        case "debian":
            return ["apt-get", "download", f"{package.name}={package.version}"]


def fetch(package: Package, folder: Path, run: Run = run_client) -> Path:
    """Fetches a package's archive into a folder, unless it is there, and checks its hash.

    Raises:
        JaxTransferError: The client fails, or the archive is missing or another one.
    """
    archive = folder / package.archive
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(client_arguments(package), folder)
    if not archive.exists():
        raise JaxTransferError(f"The client of {package.registry} did not write {package.archive} of {package.name}.")
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != package.sha256:
        raise JaxTransferError(
            f"{archive} has the SHA-256 {sha256}, not {package.sha256} as the settings say; remove it to fetch it anew."
        )
    return archive


def read_file(archive: Path, name: str) -> bytes:
    """Reads a file of an archive.

    Raises:
        JaxTransferError: The archive has no such file.
    """
    for member, read in members(archive):
        if member == name:
            return read()
    raise JaxTransferError(f"{archive} has no file {name}.")


def members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Goes through the regular files of a wheel, an npm or a Debian package, without unpacking it.

    Nothing is written, so no path or link in an archive can reach a file. What a link points at is left out.

    Yields:
        The path of a file in the archive, and a function that reads it, to be called before the next file.

    Raises:
        JaxTransferError: A file that is read has more than 200 MB.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    yield info.filename, functools.partial(_read_from_zip, zipped, info)
        return
    if archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpacking:
            assert unpacking.stdout is not None
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
                yield from _tar_members(tar)
            unpacking.stdout.read()  # a pipe that is closed early would end the client with an error
        return
    with tarfile.open(archive, mode="r|*") as tar:
        yield from _tar_members(tar)


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for info in tar:
        if info.isfile():
            yield info.name.removeprefix("./"), functools.partial(_read_from_tar, tar, info)


def _read_from_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    _check_size(info.name, info.size)
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def _read_from_zip(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _check_size(info.filename, info.file_size)
    return zipped.read(info)


def _check_size(name: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise JaxTransferError(f"{name} has {size:,} bytes, more than any file that is expected.")
