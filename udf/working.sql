-- What CALL seedbed.work() runs, and what it leaves to be seen.

-- A part of a key (a JSON array of texts, u.key) as a value of its column's own type: so that an index is used.
CREATE OR REPLACE FUNCTION seedbed._key_part(relation regclass, col text, number bigint) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(CASE kind WHEN 'bytea' THEN 'decode(u.key::jsonb ->> %s, ''hex'')' ELSE '(u.key::jsonb ->> %s)::%s' END,
        number - 1, kind)
    FROM seedbed._type_of(relation, col) AS kind
$$;

-- What seedbed.work runs for one column.
CREATE OR REPLACE FUNCTION seedbed._column_statements(
    made seedbed.embedded_column, OUT read text, OUT locked text, OUT store text, OUT inlined text, OUT drop text,
    OUT orphans text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys text;
    parts text;
    row_is text;
    stored_is text;
    joined text;
    value text := format('seedbed.to_vector(u.vector, %s)%s', made.dimensions,
        CASE WHEN made.half THEN format('::%s.halfvec', seedbed._vector_schema()) ELSE '' END);
    inline boolean := made.visible = made.relation;
BEGIN
    SELECT string_agg(quote_ident(k.name), ', ' ORDER BY k.number), string_agg(k.part, ', ' ORDER BY k.number),
           string_agg(format('b.%I = %s', k.name, k.part), ' AND '), string_agg(format('s.%I = %s', k.name, k.part), ' AND '),
           string_agg(format('b.%1$I = s.%1$I', k.name), ' AND ')
    INTO keys, parts, row_is, stored_is, joined
    FROM (SELECT n.name, n.number, seedbed._key_part(made.relation, n.name, n.number) AS part
          FROM unnest(made.key_columns) WITH ORDINALITY AS n(name, number)) AS k;
    read := format($x$
        SELECT u.key, r.there IS NOT NULL AS there, r.text, r.image, r.hash, s.seedbed_hash = r.hash
            AND (r.filled OR s.seedbed_error IS NOT NULL OR coalesce(r.text, '') = '' AND r.image IS NULL) AS same
        FROM unnest($1::text[]) AS u(key)
        LEFT JOIN LATERAL (
            SELECT true AS there, c.filled, c.text, c.image,
                   sha256(convert_to(coalesce(c.text, ''), 'UTF8') || '\x00'::bytea || coalesce(c.image, '')) AS hash
            FROM (SELECT %s AS filled, %s AS text, %s AS image FROM %s b WHERE %s) AS c
        ) AS r ON true
        LEFT JOIN %s s ON %s$x$,
        CASE WHEN inline THEN format('b.%I IS NOT NULL', made.name) ELSE 'true' END,
        CASE WHEN made.content IS NULL THEN 'NULL::text' ELSE seedbed._rendered(made.relation, made.content, 'b') END,
        CASE WHEN made.image IS NULL THEN 'NULL::bytea'
             WHEN seedbed._type_of(made.relation, made.image) = 'bytea' THEN format('b.%I', made.image)
             ELSE format('convert_to(b.%I::text, ''UTF8'')', made.image) END,
        made.relation, row_is, made.store, stored_is);
    store := format($x$
        INSERT INTO %s AS s (%s, %s seedbed_hash, seedbed_error, seedbed_at)
        SELECT %s, %s u.hash, u.error, clock_timestamp()
        FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[]) AS u(key, vector, hash, error)
        ON CONFLICT (%s) DO UPDATE SET %s seedbed_hash = excluded.seedbed_hash, seedbed_error = excluded.seedbed_error,
            seedbed_at = excluded.seedbed_at$x$,
        made.store, keys, CASE WHEN inline THEN '' ELSE 'embedding,' END, parts,
        CASE WHEN inline THEN '' ELSE format('CASE WHEN u.vector IS NOT NULL THEN %s END,', value) END, keys,
        CASE WHEN inline THEN '' ELSE 'embedding = excluded.embedding,' END);
    IF inline THEN
        -- Writers hold a row and then wait for its change: so the rows come first here, too, and none is waited for.
        locked := format($x$
            SELECT u.key FROM unnest($1::text[]) AS u(key) JOIN %s b ON %s ORDER BY u.key
            FOR NO KEY UPDATE OF b SKIP LOCKED$x$, made.relation, row_is);
        inlined := format($x$
            UPDATE %s b SET %I = CASE WHEN u.vector IS NOT NULL THEN %s END
            FROM unnest($1::text[], $2::bytea[]) AS u(key, vector) WHERE %s$x$, made.relation, made.name, value, row_is);
    END IF;
    drop := format('DELETE FROM %s s USING unnest($1::text[]) AS u(key) WHERE %s', made.store, stored_is);
    orphans := format('DELETE FROM %s s WHERE NOT EXISTS (SELECT FROM %s b WHERE %s)', made.store, made.relation, joined);
END $$;

-- One of them, with its subscription and statements.
CREATE OR REPLACE FUNCTION seedbed._column_to_work(of_relation text, called text) RETURNS TABLE (
    relation text, name text, endpoint text, space text, dimensions integer, stale boolean, picture text, watcher bigint,
    read text, locked text, store text, inlined text, drop text, orphans text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made seedbed.embedded_column := seedbed._column(of_relation::regclass, called);
BEGIN
    RETURN QUERY SELECT made.relation::text, made.name, made.endpoint, made.space, made.dimensions,
        made.found_space IS NOT NULL,
        CASE WHEN made.image IS NULL THEN NULL WHEN seedbed._type_of(made.relation, made.image) = 'bytea' THEN 'bytes'
            ELSE 'url' END,
        s.id, w.read, w.locked, w.store, w.inlined, w.drop, w.orphans
    FROM seedbed_queue.subscription s, seedbed._column_statements(made) w WHERE s.name = made.subscription;
END $$;

-- The columns that the caller may work on.
CREATE OR REPLACE FUNCTION seedbed._columns_to_work() RETURNS TABLE (relation text, name text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made seedbed.embedded_column;
    super boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
    found boolean := false;
BEGIN
    IF to_regclass('seedbed_queue.change') IS NULL THEN
        RETURN;
    END IF;
    PERFORM seedbed._check_queue();
    FOR made IN SELECT e.* FROM seedbed.embedded_column e JOIN pg_class c ON c.oid = e.relation
            JOIN pg_roles r ON r.oid = c.relowner
            WHERE CASE WHEN super THEN r.rolsuper ELSE pg_has_role(c.relowner, 'USAGE') END ORDER BY e.created_at LOOP
        found := true;
        relation := made.relation::text;
        name := made.name;
        RETURN NEXT;
    END LOOP;
    IF super AND NOT found THEN
        PERFORM seedbed._check_owner(e.relation) FROM seedbed.embedded_column e;
    END IF;
END $$;

-- Once a first fill is done, as an index that grows row by row costs five times the time; by the last session at work.
CREATE OR REPLACE FUNCTION seedbed._build_index(relation text, name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    made seedbed.embedded_column := seedbed._column(relation::regclass, name);
BEGIN
    IF pg_try_advisory_xact_lock(hashtext('seedbed index ' || made.store::text))
        AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
            WHERE m.amname = 'hnsw' AND i.indrelid IN (made.store, made.visible))
        AND NOT EXISTS (SELECT FROM seedbed_queue.change c JOIN seedbed_queue.subscription s ON s.id = c.subscription_id
            WHERE s.name = made.subscription AND c.lease_until > clock_timestamp())
    THEN
        -- Parallel builds of pgvector before 0.8.2 can write beyond their memory (CVE-2026-3172).
        SET LOCAL max_parallel_maintenance_workers = 0;
        EXECUTE seedbed._index_statement(made);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION seedbed._stale(relation text, name text, found text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE seedbed.embedded_column e SET found_space = found
    WHERE e.relation = $1::regclass AND e.name = $2 AND e.found_space IS DISTINCT FROM found
$$;

CREATE OR REPLACE FUNCTION seedbed._status() RETURNS TABLE (
    relation regclass, name text, reads_from regclass, endpoint text, dimensions integer, waiting bigint, taken bigint,
    stuck bigint, oldest interval, stale boolean, advice text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF to_regclass('seedbed_queue.change') IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT e.relation, e.name, e.visible, e.endpoint, e.dimensions, q.waiting, q.taken, q.stuck, q.oldest,
            e.found_space IS NOT NULL, CASE
                WHEN e.found_space IS NOT NULL THEN 'the model has changed: make a new column beside this one, then drop it'
                WHEN s.id IS NULL THEN 'its subscription is gone: drop the column and make it anew'
                WHEN q.stuck > 0 THEN 'some changes were taken five times and never finished'
                WHEN q.oldest > interval '1 hour' AND q.taken = 0 THEN 'nobody works: CALL seedbed.work()' END
        FROM seedbed.embedded_column e LEFT JOIN seedbed_queue.subscription s ON s.name = e.subscription
        CROSS JOIN LATERAL (
            SELECT * FROM seedbed_queue.waiting(s.id)
        ) AS q(waiting, taken, stuck, oldest);
END $$;
CREATE OR REPLACE VIEW seedbed.status AS SELECT * FROM seedbed._status();

CREATE OR REPLACE PROCEDURE seedbed.work(
    max_rows integer DEFAULT 1000000, batch integer DEFAULT 256, INOUT done bigint DEFAULT NULL
) LANGUAGE plpython3u AS $$
@LOAD@
    return (udf.sibling("columns").work(plpy, GD, udf, max_rows, batch),)
$$;
COMMENT ON PROCEDURE seedbed.work(integer, integer, bigint) IS
    'Embeds what is queued for embedded columns of tables that the caller owns, a batch a transaction; `done` rows. Not within a transaction.';

