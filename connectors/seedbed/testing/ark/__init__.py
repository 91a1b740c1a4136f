"""An emulator of the Volcengine Ark multimodal embedding API, over real HTTP.

    with ArkEmulator(Settings(limits=Limits(rpm=3000))).serving() as url:
        embedder = seedbed.embedder(f"ark:doubao-embedding-vision-250615?endpoint={url}", api_key="any")

Written from the service's documentation and sharing no code with the client, so that one is a check on the other. Its
vectors are made from the words of a text: texts with words in common are near. It knows no meaning, and no picture's.
"""

from seedbed.testing.ark.emulator import ArkEmulator
from seedbed.testing.ark.faults import Faults
from seedbed.testing.ark.settings import Limits, Settings

__all__ = ["ArkEmulator", "Faults", "Limits", "Settings"]
