"""Download of checkpoints from the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from export.errors import CheckpointNotFoundError

log = logging.getLogger(__name__)


def download(repo: str, revision: str, patterns: Sequence[str], is_complete: Callable[[Path], bool]) -> Path:
    """Download files of a repo into the hub's cache, unless a complete snapshot is cached.

    An interrupted download is resumed.

    Args:
        repo: repo id.
        revision: commit, tag or branch.
        patterns: patterns of the files to download.
        is_complete: whether a cached snapshot's folder has all files. An interrupted download leaves a folder too.

    Returns:
        The snapshot's folder, which is named by the commit.

    Raises:
        CheckpointNotFoundError: the hub has no such revision.
        CheckpointNotFoundError: the snapshot is not cached, and the hub cannot be reached.
    """
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    patterns = list(patterns)
    try:
        cached = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        if is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    log.info("downloading %s at %s", repo, revision)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise CheckpointNotFoundError(f"{repo}: the hub has no revision {revision!r}") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:  # when offline: LocalEntryNotFoundError, an OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointNotFoundError(
            f"{repo} at {revision}: not in the local cache, and the hub cannot be reached ({reason}); "
            "connect to the network, or give a downloaded folder with --checkpoint DIR"
        ) from None
