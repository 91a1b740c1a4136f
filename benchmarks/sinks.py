"""Upserts through Seedbed against the best path written by hand for each store, from the same Arrow batches,
interleaved. Usage: sinks.py [ROWS [STORE…]]

By hand: pgvector, binary COPY into a temporary table and INSERT … ON CONFLICT; Qdrant's engine, points out of one
array of floats; a Qdrant server, the client's `upload_collection` by gRPC against a server that only says yes; Milvus
2.3.5, the vectors' bytes in the client's messages, and the client's `upsert` of rows, a thousand a call; milvus-lite,
the same `upsert`. All carry the same fields. Indexes of pgvector and Qdrant are left out: they cost the same on both
sides.
"""

from __future__ import annotations

import array
import base64
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import orjson
import pgvector.psycopg
import psycopg
import pyarrow as pa
import qdrant_edge
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc, schema_pb2
from qdrant_client import QdrantClient

from seedbed import registry
from seedbed.batch import point_schema, vectors_array, vectors_of
from seedbed.identity import Space, encode_key, point_id
from seedbed.postgres import Database
from seedbed.protocols import CollectionSpec, Sink
from seedbed.sinks.qdrant_wire import upserts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ROUNDS, BATCH = 3, 2000
PAYLOAD = pa.schema([pa.field("title", pa.string()), pa.field("price", pa.float64())])
FIELDS = ("_key", "_chunk", "_start", "_end", "_hash", "_payload_hash", "title", "price")
Batches = list[pa.RecordBatch]


class Contest(NamedTuple):
    """`ours` and `theirs` each write all batches into an empty place."""

    ours: Callable[[Batches], None]
    theirs: Callable[[Batches], None]


def batches(rows: int, dimensions: int, first: int = 0) -> Batches:
    """Rows numbered from `first` on."""
    random = np.random.default_rng(0)
    schema = point_schema(dimensions, PAYLOAD)
    made = []
    for start in range(first, first + rows, BATCH):
        numbers = range(start, min(start + BATCH, first + rows))
        count = len(numbers)
        keys = [encode_key([str(number)]) for number in numbers]
        vectors = random.standard_normal((count, dimensions), np.float32)
        columns = [
            pa.array(map(point_id, keys)),
            vectors_array(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
            pa.array(keys),
            *(pa.array([value] * count, pa.int32()) for value in (0, 0, 300)),
            *(pa.array([mark * 64] * count) for mark in "ab"),
            pa.array([f"a title of row number {number}" for number in numbers]),
            pa.array([number / 4 for number in numbers]),
        ]
        made.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    return made


def through(url: str, dimensions: int, forget: Callable[[str], object] = str) -> Callable[[Batches], None]:
    def write(given: Batches) -> None:
        name = f"ours_{uuid.uuid4().hex}"
        sink: Sink = registry.sink(url, collection=name)
        spec = CollectionSpec("ours", "bench", Space("m", "r", dimensions), "cosine", PAYLOAD)
        sink.ensure(spec)
        with timed():
            for batch in given:
                sink.upsert(batch)
        sink.close()
        forget(name)

    return write


_elapsed = 0.0


@contextmanager
def timed() -> Iterator[None]:
    """Making the empty place is not part of it."""
    global _elapsed
    started = time.perf_counter()
    yield
    _elapsed = time.perf_counter() - started


# --- by hand ----------------------------------------------------------------------------------------


def pgvector_by_hand(conninfo: str, dimensions: int) -> Callable[[Batches], None]:
    kind = "vector" if dimensions <= 2000 else "halfvec"
    columns = (
        f"id uuid, vector {kind}({dimensions}), _key text, _chunk int, _start int, _end int, _hash text,"
        " _payload_hash text, title text, price float8"
    )
    types = ["uuid", kind, "text", "int4", "int4", "int4", "text", "text", "text", "float8"]
    wrap = pgvector.HalfVector if kind == "halfvec" else pgvector.Vector

    def write(given: Batches) -> None:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            pgvector.psycopg.register_vector(connection)
            name = f"theirs_{uuid.uuid4().hex}"
            connection.execute(f"create table {name} ({columns}, primary key (id))")
            connection.execute(f"create temporary table part ({columns}) on commit delete rows")
            changed = ", ".join(f"{field} = excluded.{field}" for field in ("vector", *FIELDS))
            with timed():
                for batch in given:
                    with connection.transaction(), connection.cursor() as cursor:
                        with cursor.copy("copy part from stdin (format binary)") as copy:
                            copy.set_types(types)
                            rest = zip(*(batch.column(field).to_pylist() for field in FIELDS), strict=True)
                            ids = map(uuid.UUID, batch.column("id").to_pylist())
                            for identity, vector, fields in zip(ids, vectors_of(batch), rest, strict=True):
                                copy.write_row((identity, wrap(vector), *fields))
                        cursor.execute(
                            f"insert into {name} select * from part on conflict (id) do update set {changed}"
                        )

    return write


def edge_by_hand(folder: Path, dimensions: int) -> Callable[[Batches], None]:
    def write(given: Batches) -> None:
        place = folder / uuid.uuid4().hex
        place.mkdir()
        params = qdrant_edge.EdgeVectorParams(size=dimensions, distance=qdrant_edge.Distance.Cosine)
        shard = qdrant_edge.EdgeShard.create(str(place), qdrant_edge.EdgeConfig(vectors=params, wal_enabled=True))
        with timed():
            for batch in given:
                flat: Any = array.array("f")
                flat.frombytes(vectors_of(batch).tobytes())
                rows = zip(batch.column("id").to_pylist(), batch.select(FIELDS).to_pylist(), strict=True)
                points = [
                    qdrant_edge.Point(identity, flat[number * dimensions : (number + 1) * dimensions], payload)
                    for number, (identity, payload) in enumerate(rows)
                ]
                shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
                shard.flush()
        shard.close()

    return write


_YES = """
import grpc, sys
from concurrent.futures import ThreadPoolExecutor
from qdrant_client import grpc as q
done = q.UpdateResult(operation_id=1, status=q.UpdateStatus.Completed)
yes = q.PointsOperationResponse(result=done).SerializeToString()
answer = grpc.unary_unary_rpc_method_handler(lambda request, context: yes, lambda b: b, lambda b: b)
server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("qdrant.Points", {"Upsert": answer}),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


@contextmanager
def yes_server() -> Iterator[int]:
    command = [sys.executable, "-c", _YES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.communicate()


def our_messages(port: int) -> Callable[[Batches], None]:
    def write(given: Batches) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)]) as channel, timed():
            call = channel.unary_unary("/qdrant.Points/Upsert")
            for batch in given:
                for request in upserts("things", batch):
                    call(request)

    return write


def upload_collection(port: int) -> Callable[[Batches], None]:
    client = QdrantClient(host="127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False)

    def write(given: Batches) -> None:
        with timed():
            for batch in given:
                client.upload_collection(
                    "things",
                    vectors=vectors_of(batch),
                    payload=batch.select(FIELDS).to_pylist(),
                    ids=batch.column("id").to_pylist(),
                    batch_size=64,
                    parallel=1,
                    wait=True,
                )

    return write


def milvus_collection(client: MilvusClient, dimensions: int) -> str:
    name = f"theirs_{uuid.uuid4().hex}"
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=36)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
    for field in ("_key", "_hash", "_payload_hash"):
        schema.add_field(field, DataType.VARCHAR, max_length=65535)
    for field in ("_chunk", "_start", "_end"):
        schema.add_field(field, DataType.INT32)
    index = client.prepare_index_params()
    params = {"M": 16, "efConstruction": 200}
    index.add_index("vector", index_type="HNSW", metric_type="COSINE", params=params)
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
    return name


def milvus_rows(client: MilvusClient, dimensions: int) -> Callable[[Batches], None]:
    def write(given: Batches) -> None:
        name = milvus_collection(client, dimensions)
        with timed():
            for batch in given:
                rows = batch.select(["id", *FIELDS]).to_pylist()
                for row, vector in zip(rows, vectors_of(batch), strict=True):
                    row["vector"] = vector
                for start in range(0, len(rows), 1000):
                    client.upsert(name, rows[start : start + 1000])
        client.drop_collection(name)

    return write


def milvus_bytes(client: MilvusClient, address: str, login: str, dimensions: int) -> Callable[[Batches], None]:
    types = schema_pb2.DataType
    channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
    stub: Any = milvus_pb2_grpc.MilvusServiceStub(channel)

    def texts(name: str, values: list[str]) -> Any:
        scalars = schema_pb2.ScalarField(string_data=schema_pb2.StringArray(data=values))
        return schema_pb2.FieldData(type=types.VarChar, field_name=name, scalars=scalars)

    def numbers(name: str, values: list[int]) -> Any:
        scalars = schema_pb2.ScalarField(int_data=schema_pb2.IntArray(data=values))
        return schema_pb2.FieldData(type=types.Int32, field_name=name, scalars=scalars)

    def fields(batch: pa.RecordBatch) -> list[Any]:
        raw = vectors_of(batch).tobytes()
        length, left = bytearray(), len(raw)
        while left > 127:
            length.append(left & 127 | 128)
            left >>= 7
        vectors = schema_pb2.FieldData(type=types.FloatVector, field_name="vector")
        vectors.vectors.dim = dimensions
        vectors.vectors.float_vector.ParseFromString(b"\n" + bytes([*length, left]) + raw)
        dynamic = schema_pb2.FieldData(type=types.JSON, field_name="$meta", is_dynamic=True)
        dynamic.scalars.json_data.data.extend(map(orjson.dumps, batch.select(["title", "price"]).to_pylist()))
        made = [texts("id", batch.column("id").to_pylist()), vectors]
        for name in FIELDS[:6]:
            make = numbers if name in ("_chunk", "_start", "_end") else texts
            made.append(make(name, batch.column(name).to_pylist()))
        return [*made, dynamic]

    def write(given: Batches) -> None:
        name = milvus_collection(client, dimensions)
        with timed():
            for batch in given:
                request = milvus_pb2.UpsertRequest(
                    collection_name=name, num_rows=batch.num_rows, fields_data=fields(batch)
                )
                answer = stub.Upsert(request, metadata=[("authorization", base64.b64encode(login.encode()).decode())])
                assert answer.upsert_cnt == batch.num_rows
        client.drop_collection(name)

    return write


@contextmanager
def milvus_contests(folder: Path, dimensions: int) -> Iterator[dict[str, Contest]]:
    from services import milvus

    os.environ["SEEDBED_TEST_RUN"] = str(folder)
    url = milvus.server()
    login, _, address = url.removeprefix("milvus://").rpartition("@")
    client = MilvusClient(f"http://{address}", token=login)
    lite = MilvusClient(f"{folder}/theirs.db")

    def forget(name: str) -> None:
        """A server goes on indexing what stands, beside whoever writes next."""
        client.drop_alias(name)
        client.drop_collection(f"{name}__v1")

    yield {
        "milvus 2.3.5": Contest(through(url, dimensions, forget), milvus_bytes(client, address, login, dimensions)),
        "milvus 2.3.5, rows": Contest(through(url, dimensions, forget), milvus_rows(client, dimensions)),
        "milvus, embedded": Contest(
            through(f"milvus+embedded:{folder}/milvus", dimensions), milvus_rows(lite, dimensions)
        ),
    }
    client.close()
    lite.close()


# --- the run ----------------------------------------------------------------------------------------


@contextmanager
def contests(folder: Path, dimensions: int) -> Iterator[dict[str, Contest]]:
    database = Database(f"pgvector+embedded:{folder}/pg")
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        connection.execute("create extension if not exists vector")
    with yes_server() as port:
        yield {
            "pgvector": Contest(
                through(f"pgvector+embedded:{folder}/pg?index=none", dimensions),
                pgvector_by_hand(database.conninfo, dimensions),
            ),
            "qdrant, embedded": Contest(
                through(f"qdrant+embedded:{folder}/qdrant", dimensions), edge_by_hand(folder, dimensions)
            ),
            "qdrant, upload_collection": Contest(our_messages(port), upload_collection(port)),
        }
    database.close()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    wanted = sys.argv[2:]
    print(f"{rows:,} rows in batches of {BATCH:,}, {platform.machine()}, median of {ROUNDS} rounds in turn\n")
    print("| store | dimensions | by hand rows/s | seedbed rows/s | seedbed / by hand |")
    print("|---|---|---|---|---|")
    for dimensions in (1024, 2048):
        given = batches(rows, dimensions)
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
            Path(folder).chmod(0o755)
            for some in (contests, milvus_contests):
                with some(Path(folder), dimensions) as found:
                    for name, contest in found.items():
                        if not wanted or any(word in name for word in wanted):
                            measure(name, dimensions, rows, contest, given)


def measure(name: str, dimensions: int, rows: int, contest: Contest, given: Batches) -> None:
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for who, write in zip(seconds, contest, strict=True):
            write(given)
            seconds[who].append(_elapsed)
    ratio = statistics.median(t / o for o, t in zip(seconds["ours"], seconds["theirs"], strict=True))
    ours, theirs = (rows / statistics.median(seconds[who]) for who in ("ours", "theirs"))
    print(f"| {name} | {dimensions:,} | {theirs:,.0f} | {ours:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
