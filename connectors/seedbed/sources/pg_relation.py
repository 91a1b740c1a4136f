"""What is read: a table, view or query, its columns, its key, and whether an index gives the key's order."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from seedbed.errors import ConfigError
from seedbed.sources.pg_session import ReadSession
from seedbed.sources.pg_types import Column, KeyColumn
from seedbed.sources.settings import SourceSettings, unknown

_TYPES = """
SELECT t.oid, t.typname, CASE WHEN t.typcategory = 'A' THEN e.typname END, t.typtype = 'e'
FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid = ANY({}::oid[])"""
_NAMED = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass({})::oid"""
_RELATIONS = """
SELECT CASE WHEN pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY 1"""
_INDEXES = """
SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.ord), bool_and(a.attnotnull),
       bool_and(k.coll = a.attcollation), bool_and(o.opcdefault)
FROM pg_index i
CROSS JOIN unnest(i.indkey::int2[], i.indcollation::oid[], i.indclass::oid[])
     WITH ORDINALITY AS k(attnum, coll, opclass, ord)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_opclass o ON o.oid = k.opclass
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree'
WHERE i.indrelid = {} AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND k.ord <= i.indnkeyatts
GROUP BY i.indexrelid, i.indisprimary"""
# Collations that order by bytes. Of a database's default one its provider and name tell; 'b' (from 17 on) does.
_BYTEWISE = """
SELECT a.attname::text FROM pg_attribute a JOIN pg_collation l ON l.oid = a.attcollation
CROSS JOIN (SELECT to_jsonb(d) AS d FROM pg_database d WHERE datname = current_database()) database
WHERE a.attrelid = {} AND NOT a.attisdropped
  AND CASE WHEN l.collname <> 'default' THEN l.collname IN ('C', 'POSIX', 'ucs_basic')
      ELSE d ->> 'datlocprovider' = 'b'
           OR (coalesce(d ->> 'datlocprovider', 'c') = 'c' AND d ->> 'datcollate' IN ('C', 'POSIX')) END"""


@dataclass(frozen=True, slots=True)
class Relation:
    """`source` is what stands after FROM. `ordered`: a unique index over columns without NULLs gives the key's
    order, so that the relation can be read by pages of it."""

    source: sql.Composable
    columns: dict[str, Column]
    key: tuple[KeyColumn, ...]
    ordered: bool
    setting: str

    @property
    def order_by(self) -> sql.Composable:
        return sql.SQL(", ").join([key.order for key in self.key])

    def column(self, name: str, setting: str) -> Column:
        """Raises ConfigError with the nearest name."""
        if name not in self.columns:
            raise unknown("column", name, self.columns, setting)
        return self.columns[name]


def describe(session: ReadSession, settings: SourceSettings) -> Relation:
    """Raises ConfigError for a relation, column or key that is not there or cannot be used."""
    if (settings.table is None) == (settings.query is None):
        raise ConfigError(
            "a Postgres source reads either a table or a query",
            setting="source.table",
            hint='table = "schema.name" or query = "SELECT …"',
        )
    if settings.table is not None:
        return _table(session, settings, settings.table)
    assert settings.query is not None
    if not settings.key:
        raise ConfigError(
            "a query's key columns must be named", setting="source.key", hint='key = ["id"], columns of the query'
        )
    source = sql.SQL("(\n{}\n) AS source").format(sql.SQL(settings.query.strip().rstrip(";")))
    columns = _columns(session, source, settings.where, "source.query", set())
    return Relation(source, columns, _key(session, columns, settings.key), ordered=False, setting="source.query")


def _table(session: ReadSession, settings: SourceSettings, name: str) -> Relation:
    found = session.rows(sql.SQL(_NAMED).format(sql.Literal(name)), "source.table") or session.rows(
        sql.SQL(_NAMED).format(sql.Literal(_quoted(name))), "source.table"
    )
    if not found:
        known = [row[0] for row in session.rows(sql.SQL(_RELATIONS))]
        raise unknown("table", name, known, "source.table")
    oid, schema, table = found[0]
    source = sql.Identifier(schema, table)
    bytewise = {row[0] for row in session.rows(sql.SQL(_BYTEWISE).format(sql.Literal(oid)))}
    indexes = session.rows(sql.SQL(_INDEXES).format(sql.Literal(oid)))
    names = settings.key or next((tuple(columns) for primary, columns, *_ in indexes if primary), ())
    if not names:
        raise ConfigError(
            f"the table {name} has no primary key, so its key columns must be named",
            setting="source.key",
            hint='key = ["id"], columns that tell its rows apart',
        )
    columns = _columns(session, source, settings.where, "source.table", bytewise)
    key = _key(session, columns, names)
    indexed = any(tuple(columns) == names and all(fits) for _, columns, *fits in indexes)
    return Relation(source, columns, key, indexed and all(column.indexable for column in key), "source.table")


def _quoted(name: str) -> str:
    return ".".join(sql.Identifier(part).as_string(None) for part in name.replace('"', "").split("."))


def _key(session: ReadSession, columns: dict[str, Column], names: tuple[str, ...]) -> tuple[KeyColumn, ...]:
    for name in names:
        if name not in columns:
            raise unknown("column", name, columns, "source.key")
    return tuple(KeyColumn(columns[name], encoding=session.encoding) for name in names)


def _columns(
    session: ReadSession, source: sql.Composable, where: str | None, setting: str, bytewise: set[str]
) -> dict[str, Column]:
    # LIMIT 0 plans and types a statement without running it.
    described = session.describe(sql.SQL("SELECT * FROM {} LIMIT 0").format(source), setting)
    if where is not None:
        statement = sql.SQL("SELECT 1 FROM {} WHERE {} LIMIT 0").format(source, condition(where))
        session.describe(statement, "source.where")
    oids = sorted({oid for _, oid in described})
    types = {
        oid: (name, item, enum) for oid, name, item, enum in session.rows(sql.SQL(_TYPES).format(sql.Literal(oids)))
    }
    columns: dict[str, Column] = {}
    for name, oid in described:
        if name in columns:
            raise ConfigError(
                f"two columns are called {name!r}", setting=setting, hint="name one of them anew in the query: AS …"
            )
        type_name, item, enum = types[oid]
        columns[name] = Column(name, type_name, item, enum, name in bytewise)
    return columns


def condition(text: str) -> sql.Composable:
    """A user's condition, on lines of its own so that a comment at its end hides nothing of ours."""
    return sql.SQL("(\n{}\n)").format(sql.SQL(text))
