"""Escape untrusted text for a terminal, a log and an error."""

from __future__ import annotations


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
