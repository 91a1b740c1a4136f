"""Media that stand in their URL itself."""

from __future__ import annotations

import base64
import binascii
import re

from seedbed.errors import RowError

_DATA = re.compile(r"data:([^,;]*)(;[^,]*)?,", re.IGNORECASE)


def of_data_url(url: str) -> bytes | None:
    """The bytes of a `data:` URL, None where it is none. Raises RowError where they are no base64; its MIME type is
    not believed, here as elsewhere."""
    if url[:5].lower() != "data:":
        return None
    found = _DATA.match(url)
    if found is None or "base64" not in (found[2] or "").lower():
        raise RowError("a data URL that is no base64: write data:image/png;base64,…")
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except binascii.Error as error:
        raise RowError(f"a data URL that is no base64: {error}") from None
