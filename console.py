"""Text for terminals of any encoding."""

from __future__ import annotations

import os
from typing import TextIO


def write(stream: TextIO, text: str) -> None:
    """Write ``text`` and a line's end; letters that the stream has no code for as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:  # whoever read it has gone, as after ``| head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
