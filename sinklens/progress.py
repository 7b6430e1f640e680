"""Whether a progress bar is hidden: by the caller, or for all of a process by tqdm's own TQDM_DISABLE."""

from __future__ import annotations

import os


def hidden(progress: bool | str) -> bool:
    """Tqdm reads TQDM_DISABLE only where a caller says nothing; sinklens's callers always say something."""
    return not progress or os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
