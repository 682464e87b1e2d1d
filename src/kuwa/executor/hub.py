"""Models on the Hugging Face hub: `hf://<repo>?<file>`, or all of a repository that a model needs, become checked files
in huggingface_hub's own cache.

Called by llamacpp's `pull`, the program that both `kuwa pull` and the executor start, and by huggingface's `loading`.
huggingface_hub knows the hub (endpoint, token, names, the layout of its cache); the bytes are fetched here, because its
own download begins again after every cut. What was fetched lies in `blobs/<checksum>.kuwa-part` until it is whole and
its checksum is right.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

SCHEME = "hf://"
HEAD_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0
TRIES = 6
"""How often a download is taken up again without a new byte in between."""
FIRST_PAUSE_S = 0.5
SPARE_BYTES = 64 * 1024 * 1024
"""What a download leaves free on the disk."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.gguf)")


class CannotDownload(Exception):
    """The file cannot be had; the message says why and what to do."""


class HubUnreachable(CannotDownload):
    """The hub could not be asked."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository; `revision` is a branch, a tag or a commit."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{SCHEME}{self.repo}{at}?{self.file}" if self.file else f"{self.repo}{at}"

    def parts(self) -> list[HubFile]:
        """This file; of a model that is split over several, all of them."""
        split = _SPLIT.fullmatch(self.file)
        if split is None:
            return [self]
        count = min(int(split[4]), 1000)
        names = [f"{split[1]}{part:05}{split[3]}{split[4]}{split[5]}" for part in range(1, count + 1)]
        return [HubFile(self.repo, name, self.revision) for name in names]


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of one file that are there, and how many it has."""

    file: str
    done: int
    total: int


Report = Callable[[Progress], None]


def parse(text: str) -> HubFile:
    """Read `hf://<owner>/<repo>[@<revision>]?<file>`. Raises CannotDownload."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?:\?(.*))?", text)
    if match is None:
        raise CannotDownload(f"{text} is no path on the hub; it looks like hf://owner/repo?file.gguf.")
    repo, revision, file = match[1], match[2] or "main", match[3] or ""
    if any(part in ("", ".", "..") for part in file.split("/")) and file:
        raise CannotDownload(f"{text} names no file of a repository; it looks like hf://owner/repo?file.gguf.")
    return HubFile(repo, file, revision)


def cached(wanted: HubFile) -> Path | None:
    """Where the file lies if it was downloaded before. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(wanted.repo, wanted.file, revision=wanted.revision)
    return Path(found) if isinstance(found, str) else None


def download(wanted: HubFile, report: Report) -> Path:
    """Fetch the file (all parts of a split model) and check it; the path of it in the cache.

    What is there already is not fetched again, but its checksum is compared. Raises CannotDownload.
    """
    with _clear_errors(wanted):
        if not wanted.file:
            raise CannotDownload(f"{SCHEME}{wanted.repo} names no file. {_choice(wanted)}")
        sources = [_Source.of(part) for part in wanted.parts()]
        paths = {source.wanted: _fetch(source, report) for source in sources}
        return paths[wanted]


def snapshot(repo: str, revision: str, wants: Callable[[str], bool], report: Report) -> Path:
    """The folder with all files of the repository that `wants` (given their names) says are wanted.

    What is there already and has not changed on the hub is taken as it is. Raises CannotDownload.
    """
    whole = HubFile(repo, "", revision)
    with _clear_errors(whole):
        entries: Any = _library().HfApi().list_repo_tree(repo, revision=revision, recursive=True)
        checksums = {entry.path: _checksum(entry) for entry in entries if hasattr(entry, "size") and wants(entry.path)}
        if not checksums:
            raise CannotDownload(f"{whole} holds no files of a transformers model.")
        files: dict[str, Path] = {}
        for name, checksum in sorted(checksums.items()):
            wanted = HubFile(repo, name, revision)
            there = cached(wanted)
            same = there is not None and there.resolve().name == checksum
            files[name] = there if there is not None and same else _fetch(_Source.of(wanted), report)
    name, path = min(files.items())
    return path.parents[name.count("/")]


def snapshot_here(repo: str, revision: str) -> Path | None:
    """The repository's folder as it was downloaded before, perhaps not all of it. Asks nobody."""
    config = cached(HubFile(repo, "config.json", revision)) or cached(HubFile(repo, "adapter_config.json", revision))
    return config.parent if config is not None else None


def _checksum(entry: Any) -> str:
    """What a file is called in the cache."""
    return str(entry.lfs.sha256) if getattr(entry, "lfs", None) else str(entry.blob_id)


@dataclass(frozen=True, slots=True)
class _Source:
    """What the hub says of a file before it is fetched; `size` in bytes."""

    wanted: HubFile
    url: str
    size: int
    etag: str

    @classmethod
    def of(cls, wanted: HubFile) -> _Source:
        from huggingface_hub import errors, hf_hub_url

        url = hf_hub_url(wanted.repo, wanted.file, revision=wanted.revision)
        try:
            known = _library().get_hf_file_metadata(url, timeout=HEAD_TIMEOUT_S)
        except errors.EntryNotFoundError as error:
            raise CannotDownload(f"{wanted.repo} has no file {wanted.file}. {_choice(wanted)}") from error
        if not known.etag or not known.size or "/" in known.etag:
            raise CannotDownload(f"{url} says neither size nor checksum; HF_ENDPOINT may be no Hugging Face hub.")
        return cls(wanted, url, known.size, known.etag)


def _fetch(source: _Source, report: Report) -> Path:
    """One file, under a lock of its own: two programs that want the same file fetch it once."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    wanted = source.wanted
    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.repo, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob = blobs / source.etag
    part = blobs / f"{source.etag}.kuwa-part"
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not blob.exists():
            _Transfer(source, report).into(file)
        whole = blob if blob.exists() else part
        _check(source, whole, report)
        if whole is part:
            part.replace(blob)
        else:
            part.unlink(missing_ok=True)
    # The data is in its place; the library adds its links and references to it.
    return Path(_library().hf_hub_download(wanted.repo, wanted.file, revision=wanted.revision))


def _library() -> Any:
    """huggingface_hub, whose annotations are partial."""
    return import_module("huggingface_hub")


class _Transfer:
    """Fetches one file's bytes; a connection that breaks is taken up where it broke."""

    def __init__(self, source: _Source, report: Report) -> None:
        self._source = source
        self._size = source.size
        self._report = report

    def into(self, file: BinaryIO) -> None:
        """Append what is missing to `file`."""
        import httpx2

        have = os.fstat(file.fileno()).st_size
        if have > self._size:
            have = _cut(file, 0)
        _check_space(Path(file.name).parent, self._size - have)
        tries = 0
        while have < self._size:
            begun = have
            try:
                have = self._stream(file, have)
                fault = "the connection ended early"
            except httpx2.TransportError as error:
                have = os.fstat(file.fileno()).st_size
                fault = str(error) or type(error).__name__
            tries = 1 if have > begun else tries + 1
            if have < self._size:
                if tries >= TRIES:
                    raise CannotDownload(
                        f"{self._source.wanted} broke off after {have} of {self._size} bytes ({fault}). What has come "
                        "is kept; give the same command again to go on."
                    )
                time.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))

    def _stream(self, file: BinaryIO, have: int) -> int:
        """One connection's worth; how many bytes the file has then."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status

        headers = {**_library().utils.build_hf_headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with get_session().stream(
            "GET", self._source.url, headers=headers, follow_redirects=True, timeout=STALL_TIMEOUT_S
        ) as response:
            hf_raise_for_status(response)
            if have and response.status_code != 206:
                have = _cut(file, 0)  # a server without ranges begins at the beginning
            self._report(Progress(self._source.wanted.file, have, self._size))
            for piece in response.iter_raw():  # as it comes: a cut loses nothing
                have += len(piece)
                if have > self._size:
                    raise CannotDownload(f"{self._source.url} sent more than the {self._size} bytes that it announced.")
                file.write(piece)
                file.flush()
                self._report(Progress(self._source.wanted.file, have, self._size))
        return have


def _cut(file: BinaryIO, length: int) -> int:
    file.truncate(length)
    return length


def _check(source: _Source, path: Path, report: Report) -> None:
    """Compare the file with the hub's SHA-256 of it (small files outside of LFS have none)."""
    if not _SHA256.fullmatch(source.etag):
        return
    wanted = source.wanted
    size = path.stat().st_size
    report(Progress(f"checking {wanted.file}", 0, size))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.etag:
        path.unlink()
        raise CannotDownload(
            f"{wanted} arrived damaged: its SHA-256 is {found}, and the hub says {source.etag}. It was deleted; give "
            "the same command again."
        )
    report(Progress(f"checking {wanted.file}", size, size))


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise CannotDownload(
            f"The disk has too little room: {_gigabytes(needed)} are to come, and {folder} has {_gigabytes(free)} "
            "free. Make room, or set HF_HOME to a folder on another disk."
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


@contextmanager
def _clear_errors(wanted: HubFile) -> Generator[None]:
    """Everything that the hub, its library, the network and the disk can say, as one clear sentence."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CannotDownload(
            f"{wanted.repo} wants its licence accepted first: do so at https://huggingface.co/{wanted.repo}, then "
            "give your token in HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CannotDownload(f"{wanted.repo} has no revision {wanted.revision!r}.") from error
    except errors.RepositoryNotFoundError as error:
        raise CannotDownload(
            f"There is no repository {wanted.repo} on the hub, or it is private: check the name, or give your token "
            "in HF_TOKEN."
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise HubUnreachable(f"{wanted} is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub.") from error
    except (errors.HfHubHTTPError, errors.FileMetadataError, errors.HFValidationError) as error:
        raise CannotDownload(f"The hub refused {wanted}: {_first_line(error)}") from error
    except httpx2.TransportError as error:
        raise HubUnreachable(
            f"The hub cannot be reached for {wanted}: {_first_line(error) or type(error).__name__}. Check the "
            "network, a proxy in HTTPS_PROXY, or a mirror in HF_ENDPOINT."
        ) from error
    except OSError as error:
        raise CannotDownload(_disk_error(wanted, error)) from error


def _disk_error(wanted: HubFile, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full; {wanted} is not complete. Make room and give the same command again, it goes on "
            "from there; or set HF_HOME to a folder on another disk."
        )
    return f"{wanted} cannot be stored: {error.strerror or error} ({error.filename})."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _choice(wanted: HubFile) -> str:
    """What could have been meant: the repository's GGUF files, the nearest names first."""
    from huggingface_hub import HfApi

    try:
        listed: Any = HfApi().list_repo_files(wanted.repo, revision=wanted.revision)
    except Exception:  # noqa: BLE001 - this is help beside an error, which must not hide it
        return ""
    names = [name for name in listed if name.endswith(".gguf")]
    if not names:
        return "It holds no GGUF file."
    near = difflib.get_close_matches(wanted.file, names, n=3, cutoff=0.5)
    shown = near or names[:8]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) and not near else ""
    return f"{'Did you mean' if near else 'It has'} {', '.join(shown)}{more}{'?' if near else '.'}"
