"""Runs after each run of the pipeline `products`, and says what that one did."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task

from seedbed.airflow.builder import asset

PRODUCTS = asset("products")


@dag(schedule=[PRODUCTS], catchup=False, tags=["seedbed", "example"])
def seedbed_example_downstream() -> None:
    """Its events carry the counts and the watermark: everything that was committed before it is in the stores."""

    @task
    def changed() -> dict[str, Any]:
        events = get_current_context()["triggering_asset_events"][PRODUCTS]
        told = events[-1].extra
        return {name: told.get(name) for name in ("embedded", "deleted", "failed", "watermark")}

    changed()


seedbed_example_downstream()
