"""What is kept with a collection, as one JSON text: for stores that keep words beside a collection, not tables."""

from __future__ import annotations

import json

from seedbed.identity import Space
from seedbed.protocols import CollectionSpec
from seedbed.sinks.payload import payload_from_json, payload_to_json


def to_json(spec: CollectionSpec) -> str:
    """All of the spec but its name, which the store knows."""
    return json.dumps(
        {
            "pipeline": spec.pipeline,
            "space": json.loads(spec.space.to_json()),
            "metric": spec.metric,
            "payload": json.loads(payload_to_json(spec.payload)),
            "info": dict(spec.info),
            "vectors": list(spec.vectors),
        },
        ensure_ascii=False,
    )


def from_json(name: str, text: str) -> CollectionSpec:
    """The inverse of `to_json`."""
    kept = json.loads(text)
    space, payload = json.dumps(kept["space"]), json.dumps(kept["payload"])
    return CollectionSpec(
        name,
        kept["pipeline"],
        Space.from_json(space),
        kept["metric"],
        payload_from_json(payload),
        kept["info"],
        tuple(kept["vectors"]),
    )
