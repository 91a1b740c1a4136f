"""A container's health: `health.py URL [COMPONENT]` ends with 0 where URL answers 200 and, in the report that Airflow
gives there, COMPONENT is healthy. The images have no curl."""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit


def trouble(url: str, component: str | None = None) -> str | None:
    """What is wrong, in words; None where all is well."""
    place = urlsplit(url)
    # No proxy, whatever the environment says.
    connection = HTTPConnection(place.hostname or "", place.port, timeout=4)
    try:
        connection.request("GET", place.path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return f"{url} answers {answer.status}"
        if component is None:
            return None
        status = json.loads(body).get(component, {}).get("status")
    except (OSError, HTTPException, ValueError) as error:
        return f"{url}: {error}"
    finally:
        connection.close()
    return None if status == "healthy" else f"{component} is {status}"


if __name__ == "__main__":
    sys.exit(trouble(*sys.argv[1:]))
