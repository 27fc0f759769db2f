"""Text for terminals, logs and errors: untrusted text escaped, tables aligned."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str, most: int = 1000) -> str:
    r"""Escape every character that is not printable, and truncate to a length.

    What cannot be printed are control characters, so the codes that steer terminals, line breaks, marks that turn the
    direction of writing, and lone surrogates, which no encoding takes.

    Args:
        text: of any length, from anyone.
        most: characters of it that are kept.

    Example:
        >>> print(printable("a title\x1b[31m\n\ud800"), printable("abcdef", most=3))
        a title\x1b[31m\n\ud800 abc...
    """
    kept = text if len(text) <= most else f"{text[:most]}..."
    if kept.isprintable():
        return kept
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
