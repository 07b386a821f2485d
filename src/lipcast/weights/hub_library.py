"""The Hugging Face hub as Lipcast uses it: what a repository holds, its files, their hashes.

`Hub` is what `pull` talks to; tests stand in for it. `HubLibrary` is huggingface_hub, which reads
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lipcast.errors import UsageError


class Hub(Protocol):
    """The operations of huggingface_hub that a download needs; they raise its errors."""

    def __call__(self, repo: str, **options: Any) -> Any:
        """`huggingface_hub.snapshot_download`: fetch, or list with `dry_run`."""
        ...

    def hashes(self, repo: str, files: Sequence[str], revision: str) -> dict[str, str]:
        """Return {file: sha256} of the large files; the hub knows none of small ones."""
        ...


class HubLibrary:
    """huggingface_hub. Raises UsageError where it is not installed."""

    def __init__(self, *, progress: bool) -> None:
        try:
            import huggingface_hub
            from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
        except ImportError as error:
            raise UsageError(
                "pull: needs the package huggingface_hub; install it with: "
                "pip install 'lipcast[hub]'"
            ) from error
        (enable_progress_bars if progress else disable_progress_bars)()
        self._library = huggingface_hub

    @property
    def is_offline(self) -> bool:
        """Whether the environment says that there is no network."""
        return bool(self._library.constants.HF_HUB_OFFLINE)

    def __call__(self, repo: str, **options: Any) -> Any:
        return self._library.snapshot_download(repo, **options)

    def hashes(self, repo: str, files: Sequence[str], revision: str) -> dict[str, str]:
        found = self._library.HfApi().get_paths_info(repo, list(files), revision=revision)
        large = ((file.path, getattr(file, "lfs", None)) for file in found)
        return {path: str(lfs.sha256) for path, lfs in large if lfs is not None}
