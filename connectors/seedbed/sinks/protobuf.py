"""The one piece of protobuf's wire format that packed vectors need: https://protobuf.dev/programming-guides/encoding/"""

from __future__ import annotations

_SMALL = [bytes([number]) for number in range(0x80)]


def varint(number: int) -> bytes:
    """A whole number from zero on, seven bits a byte, the lowest first."""
    if number < 0x80:
        return _SMALL[number]
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
