"""What a file is, by its first bytes: names, headers and MIME types lie."""

from __future__ import annotations

_PICTURES = (
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/gif", 0, b"GIF8"),
    ("image/webp", 8, b"WEBP"),
    ("image/bmp", 0, b"BM"),
    ("image/tiff", 0, b"II*\0"),
    ("image/tiff", 0, b"MM\0*"),
    ("image/avif", 4, b"ftypavif"),
    ("image/avif", 4, b"ftypavis"),
)
_VIDEOS = (
    ("video/x-msvideo", 8, b"AVI "),
    ("video/x-matroska", 0, b"\x1aE\xdf\xa3"),
    ("video/quicktime", 4, b"ftypqt"),
    ("video/mp4", 4, b"ftyp"),
    ("video/quicktime", 4, b"moov"),
    ("video/quicktime", 4, b"mdat"),
    ("video/mpeg", 0, b"\0\0\1\xba"),
    ("video/mp2t", 0, b"G"),
)
_STILL_FTYP = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
SHOWN = 40


def picture_type(data: bytes) -> str | None:
    """A picture's MIME type, None where it is none that is read here."""
    return _found(_PICTURES, data)


def video_type(data: bytes) -> str | None:
    if data[4:8] == b"ftyp" and data[8:12] in _STILL_FTYP:
        return None
    kind = _found(_VIDEOS, data)
    # A transport stream has its mark every 188 bytes; a text may begin with the letter.
    return None if kind == "video/mp2t" and data[188:189] != b"G" else kind


def beginning(data: bytes) -> str:
    """How a file begins, for an error: text as it reads, else hexadecimal."""
    start = data[:SHOWN]
    text = start.decode("ascii", errors="replace")
    if all(character.isprintable() or character.isspace() for character in text.replace("\ufffd", "\0")):
        return repr(" ".join(text.split()))
    return start[:12].hex(" ")


def _found(kinds: tuple[tuple[str, int, bytes], ...], data: bytes) -> str | None:
    return next((mime for mime, at, magic in kinds if data[at : at + len(magic)] == magic), None)
