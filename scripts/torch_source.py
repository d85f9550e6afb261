"""Where torch is taken from, and how much is fetched with it. Used by setup_venv.py."""

import http.client
import os
import re
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 5.0  # seconds


def index_options(build: str) -> list[str]:
    """Choose pip's index: PyTorch's own for the CPU build where it answers, else what pip is configured with.

    Args:
        build: `cpu` or `cuda`.
    """
    if build == "cpu" and not os.environ.get("PIP_NO_INDEX") and answers(f"{CPU_INDEX}/torch/", PATIENCE):
        return ["--index-url", CPU_INDEX]
    return []


def announcement(downloads: Sequence[dict[str, Any]]) -> str:
    """Say in one line what would be fetched, its size and its source.

    Args:
        downloads: The `install` list of `pip install --dry-run --report`; one entry is torch.
    """
    torch = next(item for item in downloads if item["metadata"]["name"] == "torch")
    sizes = [size(item["download_info"]["url"]) for item in downloads]
    known = [one for one in sizes if one is not None]
    total = f"{sum(known) / 1e6:.0f} MB" if len(known) == len(sizes) else "size unknown"
    others = f" and {len(downloads) - 1} packages with it" if len(downloads) > 1 else ""
    source = urllib.parse.unquote(torch["download_info"]["url"]).removeprefix("file://")
    source = re.sub("//[^/]*@", "//", source)  # no password on the screen
    return f"torch {torch['metadata']['version']}{others}: {total} from {source}"


def answers(url: str, patience: float) -> bool:
    """Whether a URL can be fetched in time; in a thread, because no timeout covers the name lookup."""
    good: list[bool] = []

    def ask() -> None:
        if head(url, patience) is not None:
            good.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(good)


def head(url: str, patience: float) -> str | None:
    """Return a URL's Content-Length, empty if it has none, or None if it cannot be reached."""
    try:
        trust = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=patience, context=trust) as response:
            return str(response.headers.get("Content-Length") or "")
    except (OSError, ValueError, http.client.HTTPException):
        return None


def size(url: str) -> int | None:
    """Return the bytes behind a file or web URL, or None if nobody says."""
    if url.startswith("file:"):
        return os.path.getsize(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
    length = head(url, PATIENCE) or ""
    return int(length) if length.isdigit() else None
