"""Seedbed as one of Airflow's providers: what it says of itself, and whether Airflow finds it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from seedbed.airflow.provider_info import get_provider_info
from services.airflow_program import ran

TYPES = ["seedbed_ark", "seedbed_milvus", "seedbed_postgres", "seedbed_qdrant", "seedbed_server"]
STANDARD = {"host", "port", "login", "password", "schema", "extra"}
HEAVY = {"torch", "transformers", "psycopg", "pgvector", "pymilvus", "qdrant_client", "grpc", "aiohttp", "pyarrow"}


def installed(name: str) -> dict[str, Any]:
    """A file of the installed Airflow, found without importing it."""
    found = find_spec("airflow")
    assert found is not None
    assert found.submodule_search_locations
    read: dict[str, Any] = json.loads(Path(found.submodule_search_locations[0], name).read_text(encoding="utf-8"))
    return read


def test_its_info_is_there_without_loading_anything(tmp_path: Path) -> None:
    program = """
import json, sys
from seedbed.airflow.provider_info import get_provider_info
get_provider_info()
print("RESULT " + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    loaded, _ = ran(program, tmp_path)
    assert not {*HEAVY, "airflow", "numpy", "msgspec"} & set(loaded)


def test_its_info_is_as_airflow_wants_it() -> None:
    info = get_provider_info()
    schema = installed("provider_info.schema.json")
    jsonschema.validate(info, schema)
    assert set(info) <= set(schema["properties"])
    # The runtime's schema lets anything through that it does not know; the one that providers are built by does not.
    strict = installed("provider.yaml.schema.json")["properties"]
    for part in ("connection-types", "operators", "sensors", "hooks", "triggers", "extra-links"):
        jsonschema.validate(info[part], strict[part])
    for kind in info["connection-types"]:
        assert set(kind) <= set(strict["connection-types"]["items"]["properties"])


@pytest.mark.parametrize("kind", get_provider_info()["connection-types"], ids=lambda kind: kind["connection-type"])
def test_a_form_names_fields_that_it_has(kind: dict[str, Any]) -> None:
    behaviour, fields = kind["ui-field-behaviour"], set(kind["conn-fields"])
    hidden = set(behaviour["hidden-fields"])
    assert hidden <= STANDARD
    assert {*behaviour["relabeling"], *behaviour["placeholders"]} <= (STANDARD - hidden) | fields
    secret = {name for name, field in kind["conn-fields"].items() if field["schema"].get("format") == "password"}
    assert secret == {name for name in fields if "password" in name or "key" in name or "token" in name}


def test_what_it_declares_is_there() -> None:
    info = get_provider_info()
    modules = [
        name for part in ("operators", "sensors", "hooks", "triggers") for name in info[part][0]["python-modules"]
    ]
    classes = [*info["extra-links"], *(kind["hook-class-name"] for kind in info["connection-types"])]
    modules += [name.rpartition(".")[0] for name in classes]
    assert [name for name in modules if find_spec(name) is None] == []


FOUND = """
import json, sys
from airflow.providers_manager import ProvidersManager
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
manager = ProvidersManager()
forms = {form.connection_type: [form.hook_name, form.field_behaviour] for form in
         manager.iter_connection_type_hook_ui_metadata() if form.connection_type.startswith("seedbed")}
fields = {name: widget.is_sensitive for name, widget in manager._connection_form_widgets_from_metadata.items()
          if name.startswith("extra__seedbed")}
before = [name for name in sys.modules if name == "seedbed.airflow.hooks"]
hooks = ProvidersManagerTaskRuntime().hooks
made = {name: [info.hook_name, info.connection_id_attribute_name, info.connection_testable] for name, info in
        ((name, hooks[name]) for name in forms)}
print("RESULT " + json.dumps({
    "provider": manager.providers["seedbed"].version, "forms": forms, "fields": fields, "hooks": made,
    "early": before, "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def test_airflow_finds_its_forms_and_hooks(tmp_path: Path) -> None:
    found, said = ran(FOUND, tmp_path, env={"AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"})
    names = {kind["connection-type"]: kind["hook-name"] for kind in get_provider_info()["connection-types"]}
    assert found["provider"]
    assert sorted(found["forms"]) == TYPES
    assert {kind: form[0] for kind, form in found["forms"].items()} == names
    assert "login" in found["forms"]["seedbed_qdrant"][1]["hidden_fields"]
    assert found["fields"]["extra__seedbed_milvus__tls"] is False
    assert found["fields"]["extra__seedbed_postgres__sslpassword"] is True
    assert found["early"] == []
    # A hook's name and its form's are the same, and it can be tested.
    assert found["hooks"] == {kind: [name, "conn_id", True] for kind, name in names.items()}
    assert not HEAVY & set(found["loaded"])
    assert "seedbed.airflow.hooks" not in said
