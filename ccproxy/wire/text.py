"""
Text that JSON can carry.
"""

from __future__ import annotations


def checkUTF8(text: str) -> None:
    """
    Check that JSON can carry a text. It cannot carry one that Python has made of bytes that are
    not UTF-8, such as a word of a command line.

    @raise ValueError: JSON cannot carry the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(notUTF8(text)) from None


def notUTF8(text: str) -> str:
    """Return the message about a text that is not UTF-8."""
    return f"{text!r} is not UTF-8, and the protocol can carry nothing else"
