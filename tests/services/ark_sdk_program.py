"""Executed by the interpreter that has the official SDK: requests on stdin, what became of them on stdout."""

import json
import sys
from typing import Any

from volcenginesdkarkruntime import Ark  # type: ignore[import-not-found]
from volcenginesdkarkruntime._exceptions import ArkAPIError  # type: ignore[import-not-found]


def main() -> None:
    client = Ark(api_key=sys.argv[2], base_url=sys.argv[1], max_retries=0)
    found: list[dict[str, Any]] = []
    for request in json.load(sys.stdin):
        try:
            found.append({"answer": client.multimodal_embeddings.create(**request).model_dump()})
        except ArkAPIError as error:
            code, status = getattr(error, "code", None), getattr(error, "status_code", None)
            found.append({"error": type(error).__name__, "code": code, "status": status})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
