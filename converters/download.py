"""Downloads the weights of the Taskonomy networks from their PyTorch release."""

import contextlib
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pooch
import requests
import urllib3

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.taskonomy.tasks import task_name

BASE_URL = "https://github.com/alexsax/visual-prior/raw/networks/assets/pytorch/"

RELEASE_FILES = (
    "autoencoding_encoder-e35146c09253720e97c0a7f8ee4e896ac931f5faa1449df003d81e6089ac6307.pth",
    "autoencoding_decoder-a4a006b5a8b314b9b0ae815c12cf80e4c5f2e6c703abdf65a64a020d3fef7941.pth",
    "class_object_encoder-4a4e42dad58066039a0d2f9d128bb32e93a7e4aa52edb2d2a07bcdd1a6536c18.pth",
    "class_object_decoder-3cdb6d9ec5a221ca39352e62412c2ab5ae7a00258a962b9b67fe398566ce6c5d.pth",
    "class_scene_encoder-ad85764467cddafd98211313ceddebb98adf2a6bee2cedfe0b922a37ae65eaf8.pth",
    "class_scene_decoder-517010623d64eb108ca3225fde2a87e72e3e97137b744aa12deeff2fa4f097dc.pth",
    "colorization_encoder-5ed817acdd28d13e443d98ad15ebe1c3059a3252396a2dff6a2090f6f86616a5.pth",
    "curvature_encoder-3767cf5d06d9c6bca859631eb5a3c368d66abeb15542171b94188ffbe47d7571.pth",
    "curvature_decoder-b93aed18d7510ad9502755f05c1ef569c00d1fc9c4620333a764ad0d6d131fd3.pth",
    "denoising_encoder-b64cab95af4a2c565066a7e8effaf37d6586c3b9389b47fff9376478d849db38.pth",
    "denoising_decoder-5c4e343e885ac13ed0093b4f357680437b8a81f4d36c0b27b6ac831ba5c9fce6.pth",
    "depth_euclidean_encoder-88f18d41313de7dbc88314a7f0feec3023047303d94d73eb8622dc40334ef149.pth",
    "depth_euclidean_decoder-f8d7d0d2bdaf55fac3bdfc8c2812c599bac84985d55503ec92960a4c8b5db7e8.pth",
    "depth_zbuffer_encoder-cc343a8ed622fd7ee3ce54398be8682bbbbfb5d11fa80e8d03a56a5ae4e11b09.pth",
    "depth_zbuffer_decoder-4833f06833899a8d81b29c6d7eda8adf69b394a91a8c0389b0d58db523097de9.pth",
    "edge_occlusion_encoder-5ac3f3e918131f61e01fe95e49f462ae2fc56aa463f8d353ca84cd4e248b9c08.pth",
    "edge_occlusion_decoder-1b74d29a2b5afd9eb1a2cf2179289a31e2757909135615d5ba0a9164eb22505f.pth",
    "edge_texture_encoder-be2d686a6a4dfebe968d16146a17176eba37e29f736d5cd9a714317c93718810.pth",
    "edge_texture_decoder-e241e823d6417a0c9b36b7616aad759380dfd3eb83362124e90f9ed5daa92c73.pth",
    "egomotion_encoder-9aa647c34bf98f9e491e0b37890d77566f6ae35ccf41d9375c674511318d571c.pth",
    "fixated_pose_encoder-78cf321518abc16f9f4782b9e5d4e8f5d6966c373d951928a26f872e55297567.pth",
    "inpainting_encoder-bf96fbaaea9268a820a19a1d13dbf6af31798f8983c6d9203c00fab2d236a142.pth",
    "inpainting_decoder-5982904d2a3ce470ce993d89572134dd835dd809f5cfd6290334dc0fe8b1277f.pth",
    "jigsaw_encoder-0c2b342c9080f8713c178b04aa6c581ed3a0112fecaf78edc4c04e0a90516e39.pth",
    "keypoints2d_encoder-6b77695acff4c84091c484a7b128a1e28a7e9c36243eda278598f582cf667fe0.pth",
    "keypoints2d_decoder-0157a2a18c4e1f861c725d8d4cf3701b02e9444f47e22bdd1262c879dd2d0839.pth",
    "keypoints3d_encoder-7e3f1ec97b82ae30030b7ea4fec2dc606b71497d8c0335d05f0be3dc909d000d.pth",
    "keypoints3d_decoder-724ea6f255cbe4c487a984230242ec7c3557fa8234bde2487d69eacc7b9b75af.pth",
    "nonfixated_pose_encoder-3433a600ca9ff384b9898e55d86a186d572c2ebbe4701489a373933e3cfd5b8b.pth",
    "normal_encoder-f5e2c7737e4948e3b2a822f584892c342eaabbe66661576ba50db7cdd40561c5.pth",
    "normal_decoder-8f18bfb30ee733039f05ed4a65b4db6f7cc1f8a4b9adb4806838e2bf88e020ec.pth",
    "point_matching_encoder-4bd2a6b2909d9998fabaf0278ab568f42f2b692a648e28555ede6c6cda5361f4.pth",
    "reshading_encoder-de456246e171dc8407fb2951539aa60d75925ae0f1dbb43f110b7768398b36a6.pth",
    "reshading_decoder-5bda58f921a3065992ab0034aa0ed787af97f26ac9e5668746dae49c299606cb.pth",
    "room_layout_encoder-1e1662f43b834261464b1825227a04efba59b50cc8883bee9adc3ddafd4796c1.pth",
    "segment_semantic_encoder-bb3007244520fc89cd111e099744a22b1e5c98cd83ed3f116fbff6376d220127.pth",
    "segment_semantic_decoder-d74c6fcf4e0f2bbdce9afe21f9064453a2ac5c7131226527b1d0748f701d04a0.pth",
    "segment_unsup25d_encoder-7d12d2500c18c003ffc23943214f5dfd74932f0e3d03dde2c3a81ebc406e31a0.pth",
    "segment_unsup25d_decoder-64c1553cadf76e7efd59138321dc94d186a27eb2bb21e5e6c2624ae825bd4da1.pth",
    "segment_unsup2d_encoder-b679053a920e8bcabf0cd454606098ae85341e054080f2be29473971d4265964.pth",
    "segment_unsup2d_decoder-a0f3975a22032f116d36e3f3a49f33ddcd6e798cced3ac0962eef5bdccfc397f.pth",
    "vanishing_point_encoder-afd2ae9b71d46a54efc5231b3e38ebc3e35bfab78cb0a78d9b75863a240b19a8.pth",
)
"""The 42 files of the release: 25 encoders and 17 decoders; every name ends with the SHA-256 of the file."""

_NAME = re.compile(r"(\w+)_(encoder|decoder)-([0-9a-f]{64})\.pth")


# Seconds to wait for a connection, and for the next bytes.
_CONNECT_SECONDS, _READ_SECONDS = 10, 30
# A file may take this long, and longer if it is large.
_LEAST_SECONDS, _LEAST_BYTES_PER_SECOND = 60.0, 50_000
_MAX_BYTES = 2 * 2**30
_MAX_REDIRECTS = 5
# Answers of a server that is busy, and the seconds to wait before each further attempt.
_BUSY, _PAUSES = (429, 502, 503, 504), (1.0, 4.0, 10.0)
_SILENT_SECONDS = 3.0  # without bytes until the progress says so


class ReleaseFile(NamedTuple):
    """The parts of the name of a release file.

    Attributes:
        task: Key of the task in `TASKS`.
        part: "encoder" or "decoder".
        sha256: SHA-256 of the file.
    """

    task: str
    part: str
    sha256: str


def parse_name(name: str) -> ReleaseFile:
    """Parses the name of a release file; the task may have either of its names.

    Raises:
        JaxTransferError: The name has another form, or Taskonomy has no such task.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise JaxTransferError(
            f"{name} is not named like a file of the release, TASK_encoder-SHA256.pth or TASK_decoder-SHA256.pth: "
            "rename it or move it away."
        )
    try:
        return ReleaseFile(task_name(match[1]), match[2], match[3])
    except JaxTransferError as error:
        raise JaxTransferError(f"{name}: {error}") from None


def download(
    directory: str | Path,
    tasks: Iterable[str] | None = None,
    *,
    base_url: str = BASE_URL,
    files: Sequence[str] = RELEASE_FILES,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[Path]:
    """Downloads the weights of the Taskonomy networks, about 94 MB per encoder.

    A file appears under its name only when it is complete and has the right SHA-256. Existing files with the
    right SHA-256 are not downloaded again, so an interrupted download resumes with the first missing file. A server
    that is busy is asked again a few times; one that sends nothing for half a minute, or less than 50 kB a second, is
    given up, and redirects to other hosts are followed by https alone.

    Args:
        directory: Directory for the files; created if it does not exist.
        tasks: Names of tasks, in either naming scheme; None: all tasks.
        base_url: Address of the folder that holds the files.
        files: Names of the files to choose from.
        on_progress: Called during a download with the bytes received, the bytes of the file, and its task and part;
            by another thread where nothing comes.

    Returns:
        The paths of all chosen files.

    Raises:
        JaxTransferError: Taskonomy has no such task, or a file could not be downloaded completely or written.
    """
    directory = Path(directory)
    registry = {name: parse_name(name) for name in files}
    if tasks is not None:
        chosen = {task_name(task) for task in tasks}
        registry = {name: file for name, file in registry.items() if file.task in chosen}
    # pooch announces every file on stderr by default.
    pooch.get_logger().setLevel("WARNING")
    base_url = base_url.rstrip("/") + "/"
    store = pooch.create(directory, base_url, registry={n: f"sha256:{f.sha256}" for n, f in registry.items()})
    paths = []
    for name in registry:
        downloader: Any = _Downloader(name.partition("-")[0], on_progress)
        try:
            paths.append(Path(store.fetch(name, downloader=downloader)))
        # All of pooch's and requests' own errors are one of these; a wrong hash is a ValueError.
        except (ValueError, OSError) as error:
            raise JaxTransferError(
                f"{directory / name} could not be fetched from {base_url}{name} ({_reason(error)}); run the download "
                "again: it resumes, and finished files are kept."
            ) from error
    return paths


def _reason(error: Exception) -> str:
    if "hash" in str(error):
        return "the content does not have the SHA-256 of its name: it is truncated or corrupted"
    return " ".join(str(error).split()) or type(error).__name__


class _Downloader:
    """Fetches a file with the interface that pooch expects."""

    def __init__(self, name: str, on_progress: Callable[[int, int, str], None] | None) -> None:
        self._name, self._on_progress = name, on_progress
        self._done = self._total = 0
        self._last = time.monotonic()

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Fetches a file.

        Raises:
            OSError: It cannot be fetched.
        """
        with self._reporting_silence(), _response(url) as response, Path(output_file).open("wb") as stream:
            response.raise_for_status()
            self._total = int(response.headers.get("Content-Length", 0))
            deadline = time.monotonic() + _LEAST_SECONDS + self._total / _LEAST_BYTES_PER_SECOND
            while chunk := _next_bytes(response):
                stream.write(chunk)
                self._done += len(chunk)
                self._last = time.monotonic()
                if self._done > _MAX_BYTES:
                    raise OSError(f"the server sends more than {_MAX_BYTES >> 30} GB")
                if self._last > deadline:
                    raise OSError(f"the server sends too slowly: {self._done:,} bytes of {self._total:,} so far")
                self._report()
            if self._done < self._total:
                raise OSError(f"the file is incomplete: {self._done:,} bytes of {self._total:,}")

    def _report(self, more: str = "") -> None:
        if self._on_progress is not None:
            self._on_progress(self._done, max(self._done, self._total), f"{self._name}{more}")

    @contextlib.contextmanager
    def _reporting_silence(self) -> Iterator[None]:
        """Says meanwhile for how long nothing has come."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SILENT_SECONDS):
                if (silence := time.monotonic() - self._last) >= _SILENT_SECONDS:
                    self._report(f" (nothing came for {silence:.0f} s)")

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()


def _next_bytes(response: requests.Response) -> bytes:
    """Returns the next bytes as soon as there are some; nothing at the end."""
    try:
        return response.raw.read1(2**18)
    except urllib3.exceptions.HTTPError as error:
        raise OSError(f"the server stopped sending: {error}") from error


def _response(url: str) -> requests.Response:
    """Asks for a file; follows redirects, and asks a busy server again."""
    host, redirects = urllib.parse.urlsplit(url).hostname, 0
    pauses = iter(_PAUSES)
    while True:
        response = requests.get(
            url,
            timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            stream=True,
            allow_redirects=False,
            headers={"Accept-Encoding": "identity"},
        )
        if response.is_redirect:
            response.close()
            url = urllib.parse.urljoin(url, response.headers["Location"])
            place, redirects = urllib.parse.urlsplit(url), redirects + 1
            if place.scheme != "https" and place.hostname != host:
                raise OSError(f"the server redirects to {url}, another host without https")
            if redirects > _MAX_REDIRECTS:
                raise OSError(f"the server redirects more than {_MAX_REDIRECTS} times")
        elif response.status_code in _BUSY and (pause := next(pauses, None)) is not None:
            response.close()
            time.sleep(pause)
        else:
            return response
