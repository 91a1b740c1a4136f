"""What tokens cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prices:
    """Money a million tokens."""

    text: float = 0.0
    image: float = 0.0
    currency: str = ""

    def cost(self, text: float, image: float = 0) -> float:
        return round((text * self.text + image * self.image) / 1e6, 9)
