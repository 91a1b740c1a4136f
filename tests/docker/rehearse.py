"""Builds the images and runs the services where there is no container engine, as root on Debian 12 with debootstrap.

    PYTHONPATH=tests python tests/docker/rehearse.py FOLDER [--arg TORCH_INDEX=URL] [--bind FOLDER]

Each stage of a Dockerfile is a folder with a Debian in it, whose steps are run by chroot. Then the profiles `example`
and `airflow` run in namespaces: no network but a loopback, and no process outlives them. Commands, environment,
secrets, accounts, capabilities, read-only roots, volumes, health checks and their order are compose.yaml's own. What
differs from the real thing stands in BASES, ENTRY and ADDRESSES: the images that others make are not here.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from services import compose
from services.dockerfiles import Context, Step, parse

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PIPELINE = "/pipelines/products.toml"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = logging.getLogger("rehearse")


@dataclass(frozen=True)
class Base:
    """Stands in for a registry's image: Debian's packages, and what is read in place of what in a Dockerfile."""

    packages: Sequence[str]
    replaced: Mapping[str, str] = field(default_factory=dict)


BASES = {
    "python:3.11-slim-bookworm": Base(["python3.11", "python3.11-venv", "python3-pip", "ca-certificates"]),
    # Debian 12's own release, for which there is no package of pgvector: the one that the tests have built is laid in.
    "postgres:17.10-bookworm": Base(["postgresql-15"], {" postgresql-17-pgvector": "", "17": "15"}),
}
PREFIX = {"seedbed": "seedbed", "airflow": "seedbed-airflow", "postgres": "seedbed-postgres"}
IMAGES = {name: DOCKER / f"{name}.Dockerfile" for name in PREFIX}
POSTGRES = {"PATH": f"{PATH}:/usr/lib/postgresql/15/bin", "PGDATA": "/var/lib/postgresql/data", "LANG": "C.UTF-8"}
"""The environment of Postgres' image."""


@dataclass(frozen=True)
class Image:
    folder: Path
    env: Mapping[str, str]
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    health: Sequence[str] = ()


# --- building ---------------------------------------------------------------------------------------


def build(name: str, work: Path, arguments: Mapping[str, str], binds: Sequence[Path]) -> Image:
    stages: dict[str, Image] = {}
    context = Context(ROOT, (ROOT / ".dockerignore").read_text(encoding="utf-8"))
    for stage in parse(IMAGES[name].read_text(encoding="utf-8")):
        base = BASES[stage.base]
        env = POSTGRES if stage.base.startswith("postgres") else {"PATH": PATH}
        image = Image(work / f"{name}-{stage.name}", env)
        if image.folder.exists():
            shutil.rmtree(image.folder)
        subprocess.run(["cp", "--archive", str(_base(stage.base, work)), str(image.folder)], check=True)
        given: dict[str, str] = {}
        for step in stage.steps:
            said = step.text
            for there, here in base.replaced.items():
                said = said.replace(there, here)
            step = replace(step, text=said)
            log.info("%s: %s %s", name, step.name, step.text)
            if step.name == "ARG":
                variable, _, default = step.text.partition("=")
                given[variable] = arguments.get(variable, default)
            elif step.name == "RUN":
                _run(image, step, given, binds)
            elif step.name == "COPY":
                _copy(image, step, context, stages)
            else:
                image = _said(image, step)
        stages[stage.name] = image
    return image


def _base(name: str, work: Path) -> Path:
    folder = work / name.replace(":", "-")
    if (folder / ".made").exists():
        return folder
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(BASES[name].packages)}", "bookworm", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # The builder's own ways to its registries.
    for own in ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf"):
        if Path(own).is_dir():
            shutil.copytree(own, folder / own[1:], dirs_exist_ok=True)
        elif Path(own).exists():
            shutil.copy(own, folder / own[1:])
    if name.startswith("python"):
        (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3.11")
        for marker in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
    else:
        for part in ("lib/postgresql/15/lib/vector.so", "share/postgresql/15/extension/vector*"):
            for path in Path("/usr").glob(part):
                shutil.copy(path, folder / str(path)[1:])
        script = """usermod --uid 999 postgres && groupmod --gid 999 postgres && mkdir /docker-entrypoint-initdb.d
            install -d -o 999 -g 999 -m 0700 /var/lib/postgresql/data
            apt-get clean"""
        subprocess.run(["chroot", str(folder), "sh", "-ec", script], check=True)
    (folder / ".made").touch()
    return folder


def _run(image: Image, step: Step, given: Mapping[str, str], binds: Sequence[Path]) -> None:
    passed = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    passed["DEBIAN_FRONTEND"] = "noninteractive"
    mounts = [f"mkdir -p {image.folder}{bind} && mount --bind {bind} {image.folder}{bind}" for bind in binds]
    command = _entered(image.folder, mounts, image.workdir, "0:0", ["sh", "-c", step.text])
    subprocess.run(command, env={**passed, **image.env, **given}, check=True)


def _copy(image: Image, step: Step, context: Context, stages: Mapping[str, Image]) -> None:
    *sources, target = step.words
    into = image.folder / os.path.join(image.workdir, target)[1:]
    if (origin := step.flags.get("from")) is not None:
        for source in sources:
            there = stages[origin].folder / source.lstrip("/")
            into.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", f"{there}/.", str(into)], check=True)
        return
    for source in sources:
        for path in context.files(source):
            inner = Path(path).relative_to(source) if path != source else Path(path).name
            to = into / inner if target.endswith("/") or path != source else into
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, to)


def _said(image: Image, step: Step) -> Image:
    match step.name:
        case "ENV":
            env = dict(image.env)
            for word in shlex.split(step.text):
                name, _, value = word.partition("=")
                env[name] = value.replace("$PATH", env["PATH"])
            return replace(image, env=env)
        case "WORKDIR":
            (image.folder / step.text[1:]).mkdir(parents=True, exist_ok=True)
            return replace(image, workdir=step.text)
        case "USER":
            return replace(image, user=step.text)
        case "ENTRYPOINT":
            return replace(image, entrypoint=step.words)
        case "CMD":
            return replace(image, command=step.words)
        case "HEALTHCHECK":
            return replace(image, health=json.loads(step.text.partition("CMD ")[2]))
    return image


def _entered(folder: Path, mounts: Sequence[str], workdir: str, user: str, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` within a folder, by an account without a capability unless it is root."""
    uid, gid = user.split(":")
    account = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
    if uid != "0":
        account += ["--bounding-set=-all", "--inh-caps=-all"]
    inner = ["chroot", str(folder), *account, "env", "-C", workdir, *command]
    common = [
        f"mount --bind {folder} {folder}",
        f"mount -t proc proc {folder}/proc",
        f"mount --rbind /dev {folder}/dev",
        *mounts,
    ]
    return ["unshare", "--mount", "sh", "-c", " && ".join([*common, f"exec {shlex.join(inner)}"])]


# --- running ----------------------------------------------------------------------------------------

ENTRY = """set -eu
address=$1
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="${POSTGRES_USER:=postgres}" --pwfile="$POSTGRES_PASSWORD_FILE" > /dev/null
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl -w -o "-c listen_addresses=''" start
    export POSTGRES_USER
    [ "$POSTGRES_DB" = postgres ] || createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sh; do [ ! -e "$script" ] || sh "$script"; done
    pg_ctl -w -m fast stop
fi
exec postgres -c listen_addresses="$address"
"""
"""What matters here of the entry point of Postgres' image."""

ADDRESSES = {"airflow-db": "127.0.0.2"}
"""Both databases listen on one port, which containers need not share."""


@dataclass(frozen=True)
class Service:
    """What a container is made of, for any command in it."""

    name: str
    image: Image
    mounts: Sequence[str]
    env: Mapping[str, str]
    command: Sequence[str]
    health: Sequence[str]
    after: Sequence[str]
    once: bool

    def line(self, command: Sequence[str]) -> list[str]:
        made = {"HOME": "/", **self.image.env, **self.env}
        words = ["env", "-i", *(f"{name}={value}" for name, value in made.items()), *command]
        return _entered(self.image.folder, self.mounts, self.image.workdir, self.image.user, words)


def service(name: str, said: Mapping[str, Any], images: Mapping[str, Image], work: Path) -> Service:
    image = images[said["image"]]
    image = replace(image, user=said.get("user", image.user))
    address = ADDRESSES.get(name, "127.0.0.1")
    entrypoint = said.get("entrypoint", image.entrypoint)
    if not entrypoint:  # only Postgres' own image has none in its Dockerfile
        entrypoint = ["sh", "-c", ENTRY, "entry", address]
    told = said.get("healthcheck", {})
    health = [] if told.get("disable") else told["test"][1:] if told else image.health
    return Service(
        name=name,
        image=image,
        mounts=_mounts(said, image, work),
        env={key: str(value) for key, value in said.get("environment", {}).items()},
        command=[*entrypoint, *said.get("command", [] if "entrypoint" in said else image.command)],
        health=[word.replace("127.0.0.1", address) for word in health],
        after=list(said.get("depends_on", {})),
        once=said["restart"] == "no",
    )


def _mounts(said: Mapping[str, Any], image: Image, work: Path) -> list[str]:
    folder, made = image.folder, list[str]()
    for source, target, writable in compose.mounts(said):
        inside = _inside(folder, target)
        if source.startswith("."):
            outside = (DOCKER / source).resolve()
        else:
            outside = work / "volumes" / source
            if not outside.exists():  # a new volume is what the image has there
                inside.mkdir(parents=True, exist_ok=True)
                outside.parent.mkdir(exist_ok=True)
                subprocess.run(["cp", "--archive", str(inside), str(outside)], check=True)
        made += [f"mkdir -p {inside}", f"mount --bind {outside} {inside}"]
        if not writable:
            made.append(f"mount -o remount,bind,ro {inside}")
    for target, _, options in (entry.partition(":") for entry in said.get("tmpfs", [])):
        inside = _inside(folder, target)
        # The engine's own defaults before what is said.
        options = f"nodev,noexec,nosuid,mode=1777,{options}".rstrip(",")
        made += [f"mkdir -p {inside}", f"mount -t tmpfs -o {options} tmpfs {inside}"]
    for secret in said.get("secrets", []):
        inside = folder / "run/secrets" / secret
        made += [f"mkdir -p {inside.parent}", f"touch {inside}", f"mount --bind {DOCKER}/secrets/{secret} {inside}"]
    if said.get("read_only"):
        made.append(f"mount -o remount,bind,ro {folder}")
    return made


def _inside(folder: Path, path: str) -> Path:
    """Where a path of an image is, whose links mean its own root (`/var/run`)."""
    found = folder
    for part in path.strip("/").split("/"):
        found /= part
        if found.is_symlink():
            found = folder / os.readlink(found).lstrip("/")
    return found


def rehearse(images: Mapping[str, Image], work: Path) -> None:
    """Within the namespaces. Raises where a service ends, or is not well after five minutes."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    chosen = compose.chosen(compose.load(DOCKER / "compose.yaml"), "example", "airflow")
    services = {name: service(name, said, images, work) for name, said in chosen.items()}
    hosts = "".join(f"{ADDRESSES.get(name, '127.0.0.1')} {name}\n" for name in ("localhost", *services))
    for image in images.values():
        (image.folder / "etc/hosts").write_text(hosts, encoding="utf-8")
    running: dict[str, subprocess.Popen[bytes]] = {}
    well: set[str] = set()
    begun = time.monotonic()
    while len(well) < len(services):
        assert time.monotonic() - begun < 300, f"not well: {sorted(set(services) - well)}"
        for name, each in services.items():
            if name not in running and well.issuperset(each.after):
                with (work / f"{name}.log").open("wb") as told:
                    running[name] = subprocess.Popen(
                        each.line(each.command), stdin=subprocess.DEVNULL, stdout=told, stderr=told
                    )
            elif name in running and name not in well and _well(each, running[name], work):
                well.add(name)
                log.info("%.1f s: %s is well", time.monotonic() - begun, name)
        time.sleep(0.5)
    ask(services)
    for name, process in reversed(running.items()):
        # As Postgres' image says: by SIGTERM it would wait for its clients to go.
        process.send_signal(signal.SIGINT if "postgres" in services[name].image.folder.name else signal.SIGTERM)
        log.info("%s ended with %d", name, process.wait(60))


def _well(each: Service, process: subprocess.Popen[bytes], work: Path) -> bool:
    status = process.poll()
    if each.once and status == 0:
        return True
    assert status is None, f"{each.name} ended with {status}: {(work / f'{each.name}.log').read_text()[-3000:]}"
    return not each.once and subprocess.run(each.line(each.health), capture_output=True, check=False).returncode == 0


def ask(services: Mapping[str, Service]) -> None:
    """That it does what it is for: found by the command line and in SQL, and run by Airflow."""
    example, loader, scheduler = (services[name] for name in ("example", "example-data", "airflow-scheduler"))
    found = _answer(example, [*example.image.entrypoint, "search", PIPELINE, "a drink to wake up with", "-k", "3"])
    assert "Espresso machine" in found, found
    query = "SELECT title FROM products ORDER BY vector <=> (SELECT seedbed.embed('against the rain')) LIMIT 3"
    script = f'PGPASSWORD=$(cat /run/secrets/shop_password) exec psql --no-psqlrc --csv -c "{query}"'
    found = _answer(loader, ["sh", "-c", script])
    assert "Rain jacket" in found, found
    until = time.monotonic() + 180
    while "success" not in (found := _answer(scheduler, ["airflow", "dags", "list-runs", "seedbed_products"])):
        assert "failed" not in found, found
        assert time.monotonic() < until, found
        time.sleep(3)
    _answer(example, [*example.image.entrypoint, "status", PIPELINE])


def _answer(each: Service, command: Sequence[str]) -> str:
    done = subprocess.run(each.line(command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    log.info("$ %s\n%s", shlex.join(command), done.stdout)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build's --build-arg"
    )
    parser.add_argument("--bind", action="append", default=[], type=Path, help="a folder that steps see as well")
    parser.add_argument("--built", action="store_true", help="the images are in the folder already")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = given.folder.resolve()
    kept = work / "images.json"
    if not given.built:
        work.mkdir(parents=True, exist_ok=True)
        arguments = dict(arg.split("=", 1) for arg in given.arg)
        made = {f"{PREFIX[name]}:0.1.0": build(name, work, arguments, given.bind) for name in IMAGES}
        made["postgres:17.10-bookworm"] = Image(_base("postgres:17.10-bookworm", work), POSTGRES, user="999:999")
        kept.write_text(json.dumps({name: asdict(image) for name, image in made.items()}, default=str))
    images = {
        name: Image(**said | {"folder": Path(said["folder"])}) for name, said in json.loads(kept.read_text()).items()
    }
    if given.inside:
        rehearse(images, work)
        return
    shutil.rmtree(work / "volumes", ignore_errors=True)
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    again = [sys.executable, __file__, str(work), "--built", "--inside"]
    sys.exit(subprocess.run([*apart, *again], check=False).returncode)


if __name__ == "__main__":
    main()
