"""Images and compose files, as far as they can be checked without an engine; rehearse.py builds and runs them."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet

import seedbed
from services import compose
from services.dockerfiles import Context, Stage, parse

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SCRIPTS = sorted(DOCKER.rglob("*.sh"))
PROFILES = {"postgres", "qdrant", "milvus", "server", "airflow", "example"}
SECRET = re.compile(r"pass|secret|token|(api|private|fernet)_?key", re.IGNORECASE)

each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def stages(path: Path) -> list[Stage]:
    return parse(path.read_text(encoding="utf-8"))


def context() -> Context:
    return Context(ROOT, (ROOT / ".dockerignore").read_text(encoding="utf-8"))


def system() -> dict[str, Any]:
    return compose.load(DOCKER / "compose.yaml")


def tool(name: str) -> str:
    """A program of the extra `dev`."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, f"{name} is not installed: pip install -e '.[dev]'"
    return found


def passes(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- Dockerfiles ------------------------------------------------------------------------------------


def test_there_is_an_image_for_each_part() -> None:
    assert [path.stem for path in DOCKERFILES] == ["airflow", "postgres", "seedbed"]


@each_dockerfile
def test_what_is_copied_is_in_the_context_or_in_a_stage(path: Path) -> None:
    given, before = context(), set[str]()
    for stage in stages(path):
        for step in stage.steps:
            if step.name not in ("COPY", "ADD"):
                continue
            if "from" in step.flags:
                assert step.flags["from"] in before, f"{path.name}:{step.line}: there is no such stage"
                continue
            for source in step.words[:-1]:
                assert given.files(source), f"{path.name}:{step.line}: {source} is missing or ignored"
        before.add(stage.name)


@each_dockerfile
def test_bases_are_pinned(path: Path) -> None:
    bases = [stage.base for stage in stages(path)]
    assert bases
    assert all(re.search(r":.*\d", base) for base in bases), bases


@each_dockerfile
def test_the_last_account_is_no_root(path: Path) -> None:
    user = stages(path)[-1].last("USER")
    assert user is not None
    # Numbers, so that an engine can tell without the image's list of accounts.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.text), user.text


@each_dockerfile
def test_health_is_checked_by_what_the_image_has(path: Path) -> None:
    last = stages(path)[-1]
    health = last.last("HEALTHCHECK")
    assert health is not None
    command = json.loads(health.text.partition("CMD ")[2])
    copied = {
        f"{step.words[-1].rstrip('/')}/{Path(source).name}"
        for step in last.steps
        if step.name == "COPY"
        for source in step.words[:-1]
    }
    if entrypoint := last.last("ENTRYPOINT"):
        command += entrypoint.words
    assert {word for word in command if word.endswith((".sh", ".py"))} <= copied


@each_dockerfile
def test_no_secret_is_built_in(path: Path) -> None:
    for stage in stages(path):
        for step in stage.steps:
            assert step.name not in ("ENV", "ARG") or not SECRET.search(step.text), f"{path.name}:{step.line}"


@each_dockerfile
def test_packages_are_those_of_the_lock_and_extras_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for stage in stages(path):
        for step in stage.steps:
            if "pip install" in step.text:
                assert "--constraint constraints/py311.txt" in step.text, f"{path.name}:{step.line}"
            if step.name == "ARG" and step.text.startswith("EXTRAS="):
                extras = step.text.partition("=")[2].split(",")
                assert set(extras) <= set(project["optional-dependencies"]), extras


def test_the_images_bear_the_version_and_the_tag_that_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    made = {service["image"] for service in system()["services"].values() if "build" in service}
    assert {image.partition(":")[2] for image in made} == {project["version"]}
    airflow = next(
        line for line in (ROOT / "constraints/py311.txt").read_text().splitlines() if "apache-airflow==" in line
    )
    assert airflow.partition("==")[2] in (DOCKER / "airflow.Dockerfile").read_text(encoding="utf-8")


def test_the_context_holds_no_secret_and_nothing_of_a_checkout() -> None:
    given = context()
    held = set(given.files("."))
    assert {"pyproject.toml", "connectors/seedbed/py.typed", "udf/seedbed.control", "dags/seedbed_sync.py"} <= held
    assert not [path for path in held if re.search(r"\.git/|\.venv/|tests/|\.pyc$|udf/built/", path)]
    # Whether or not they are there just now.
    for kept_out in ("docker/secrets/key", "docker/.env", "dags/examples/some.py", ".git/config"):
        assert given.ignores(kept_out), kept_out


def test_the_ignore_rules_are_read_as_docker_reads_them(tmp_path: Path) -> None:
    for name in ("a/b.txt", "a/deep/c.pyc", "a/private/key", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = Context(tmp_path, "*\n# words\n!a\n**/*.pyc\na/private\n")
    assert given.files(".") == ["a/b.txt"]


@pytest.mark.parametrize("text", ["RUN true", "FROM a:1\nnonsense", "FROM a:1\nRUN true \\"])
def test_what_is_no_dockerfile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        parse(text)


@each_dockerfile
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    passes(tool("hadolint"), "--config", DOCKER / "hadolint.yaml", path)


# --- compose ----------------------------------------------------------------------------------------


def test_compose_files_fit_the_specification() -> None:
    files = sorted(DOCKER.glob("compose*.yaml"))
    assert len(files) == 2
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files)


def test_each_profile_holds_all_that_its_services_wait_for() -> None:
    made = system()
    assert {profile for service in made["services"].values() for profile in service["profiles"]} == PROFILES
    for profile in PROFILES:
        chosen = compose.chosen(made, profile)
        for name, service in chosen.items():
            assert set(service.get("depends_on", {})) <= set(chosen), f"{name} in {profile}"


def test_who_waits_for_health_or_an_end_can_know_it() -> None:
    services = system()["services"]
    for name, service in services.items():
        health = service.get("healthcheck", {})
        once = service["restart"] == "no"
        # A job has an end and no health; all else has health, of its own or of its image.
        assert once == bool(health.get("disable")), name
        assert once or "test" in health or "build" in service, name
        for other, how in service.get("depends_on", {}).items():
            ends = services[other]["restart"] == "no"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), (name, other)


def test_what_services_name_is_declared_and_used() -> None:
    made = system()
    used: dict[str, set[str]] = {"secrets": set(), "volumes": set(), "networks": {"default"}}
    for service in made["services"].values():
        used["secrets"] |= set(service.get("secrets", []))
        used["networks"] |= set(service.get("networks", []))
        for source, _, _ in compose.mounts(service):
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                used["volumes"].add(source)
    for kind, names in used.items():
        assert names == set(made[kind]), kind


def test_every_secret_that_is_read_is_given() -> None:
    for name, service in system()["services"].items():
        said = json.dumps([service.get("environment", {}), service.get("command", "")])
        for secret in re.findall(r"/run/secrets/(\w+)", said):
            assert secret in service["secrets"], f"{name} reads {secret}"
    pipeline = (DOCKER / "example/products.toml").read_text(encoding="utf-8")
    for name in ("example", "airflow-scheduler"):
        assert set(re.findall(r"/run/secrets/(\w+)", pipeline)) <= set(system()["services"][name]["secrets"])


def test_no_password_stands_in_the_compose_files() -> None:
    for path in DOCKER.glob("compose*.yaml"):
        for name, service in compose.load(path)["services"].items():
            for variable, value in service.get("environment", {}).items():
                if SECRET.search(variable):
                    known = variable.endswith(("_FILE", "_CMD")) or value in ("milvus", "admin:admin")
                    assert known, f"{path.name}: {name}: {variable}"


def test_ports_are_this_machines_alone() -> None:
    ports = [port for service in system()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 6
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports), ports


def test_services_are_pinned_and_hardened() -> None:
    for name, service in system()["services"].items():
        assert re.search(r":.*\d", service["image"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # What these two write outside of their volumes is not known here.
        assert service.get("read_only") or name in ("milvus", "milvus-minio"), name


def test_each_setting_is_in_the_example_with_its_default() -> None:
    assert compose.settings(DOCKER / "compose.yaml") == compose.dotenv(DOCKER / ".env.example")
    assert compose.settings(DOCKER / "compose.cuda.yaml") == {}


def test_the_gpu_is_asked_for_by_the_override_alone() -> None:
    gpu = compose.load(DOCKER / "compose.cuda.yaml")["services"]
    assert list(gpu) == ["server"]
    (device,) = gpu["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert gpu["server"]["image"] != system()["services"]["server"]["image"]
    assert "deploy" not in system()["services"]["server"]


def test_the_docs_tell_of_each_profile_and_secret() -> None:
    words = (ROOT / "docs/docker.md").read_text(encoding="utf-8")
    for name in {*PROFILES, *system()["secrets"]}:
        assert f"`{name}`" in words, name


# --- scripts ----------------------------------------------------------------------------------------


def test_shellcheck_has_nothing_to_say() -> None:
    assert len(SCRIPTS) == 5
    passes(tool("shellcheck"), *SCRIPTS)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(path: Path) -> None:
    code = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert code[0] == "set -eu"
    # The entry point of Postgres' image would read one that is not into itself, `set -eu` and all.
    assert os.access(path, os.X_OK)


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    script = shutil.copy(DOCKER / "make-secrets.sh", tmp_path)
    passes("sh", script)
    folder = tmp_path / "secrets"
    made = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert set(made) == {Path(secret["file"]).name for secret in system()["secrets"].values()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert made.pop("ark_api_key") == ""
    assert min(map(len, made.values())) >= 36
    assert len(set(made.values())) == len(made)
    Fernet(made["airflow_fernet_key"])
    assert set(json.loads(made["airflow_users"])) == {"admin"}
    assert f":{made['airflow_db_password']}@airflow-db/" in made["airflow_database_url"]
    passes("sh", script)
    assert all((folder / name).read_text(encoding="utf-8") == text for name, text in made.items())


def test_secrets_become_the_environment_of_a_program_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a b'c$d\n", encoding="utf-8")
    script = (DOCKER / "with-secrets.sh").read_text(encoding="utf-8").replace("/run/secrets", str(tmp_path))
    env = {"PATH": os.environ["PATH"], "A__KEY_FILE": str(tmp_path / "key"), "CERT_FILE": "/etc/hosts"}
    done = subprocess.run(["sh", "-c", script, "sh", "env"], env=env, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["A__KEY"] == "a b'c$d"
    assert found["CERT_FILE"] == "/etc/hosts"
    assert "A__KEY_FILE" not in found
    env["A__KEY_FILE"] = str(tmp_path / "none")
    done = subprocess.run(["sh", "-c", script, "sh", "env"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PATH" not in done.stdout


# --- health -----------------------------------------------------------------------------------------


@contextmanager
def answering(status: int, body: str) -> Iterator[int]:
    """A server's port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *words: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


REPORT = '{"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy"}, "dag_processor": {"status": null}}'


@pytest.mark.parametrize(
    ("status", "body", "component", "words"),
    [
        (200, "{}", None, None),
        (503, '{"status": "loading"}', None, "503"),
        (200, REPORT, "scheduler", None),
        (200, REPORT, "triggerer", "unhealthy"),
        (200, REPORT, "dag_processor", "None"),
        (200, REPORT, "metadatabase", "None"),
        (200, "<html>", "scheduler", "Expecting value"),
    ],
)
def test_health_is_what_the_server_says(status: int, body: str, component: str | None, words: str | None) -> None:
    trouble: Callable[..., str | None] = runpy.run_path(str(DOCKER / "health.py"))["trouble"]
    with answering(status, body) as port:
        found = trouble(f"http://127.0.0.1:{port}/health", component)
    assert found is None if words is None else words in str(found)


def test_a_server_that_is_not_there_is_not_healthy() -> None:
    with answering(200, "") as port:
        pass
    command = [sys.executable, str(DOCKER / "health.py"), f"http://127.0.0.1:{port}/readyz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r".*refused.*\n", done.stderr), done.stderr


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_qdrants_health_is_asked_by_bash_alone(status: int, code: int) -> None:
    test = system()["services"]["qdrant"]["healthcheck"]["test"]
    with answering(status, "all shards are ready") as port:
        command = [word.replace("/6333", f"/{port}") for word in test[1:]]
        assert subprocess.run(command, check=False).returncode == code


# --- the example ------------------------------------------------------------------------------------


def test_the_example_runs_on_postgres(pg_url: str, tmp_path: Path) -> None:
    text = (DOCKER / "example/products.toml").read_text(encoding="utf-8")
    text = text.replace("postgresql://shop:${file:/run/secrets/shop_password}@postgres/shop", pg_url)
    text = text.replace("http://server:8000/v1", "hash:64").replace("/var/lib/seedbed", str(tmp_path))
    assert "${" not in text
    path = tmp_path / "products.toml"
    path.write_text(text, encoding="utf-8")
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("create extension vector")
        for _ in range(2):
            connection.execute((DOCKER / "example/products.sql").read_bytes())
        report = seedbed.load(path).sync()
        assert (report.read, report.embedded, report.exit_code) == (30, 30, 0)
        stored = connection.execute("select count(*), min(price) from products").fetchone()
    assert stored == (30, 22.0)
