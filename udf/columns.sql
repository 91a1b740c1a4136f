-- Columns that keep themselves embedded. What is declared is names and a template, never SQL; statements are composed of
-- quoted names in _column_statements, for whoever may work on the table.

CREATE TABLE IF NOT EXISTS seedbed.embedded_column (
    relation regclass NOT NULL,
    name text NOT NULL,
    content text,
    image text,
    endpoint text NOT NULL,
    space text NOT NULL,
    dimensions integer NOT NULL,
    half boolean NOT NULL,
    metric text NOT NULL CHECK (metric IN ('cosine', 'dot', 'l2')),
    key_columns text[] NOT NULL,
    store regclass NOT NULL,
    visible regclass NOT NULL,
    subscription text NOT NULL,
    found_space text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (relation, name)
);
COMMENT ON TABLE seedbed.embedded_column IS
    'Columns made by seedbed.embed_column. store: the table with hashes (and vectors, unless inline); visible: what to read; found_space: what the server gave last, where that is not the column''s space any more.';
SELECT pg_catalog.pg_extension_config_dump('seedbed.embedded_column', '');
-- What stands here is carried out by the table's owner: so nobody else may write it.
ALTER TABLE seedbed.embedded_column ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_all ON seedbed.embedded_column FOR SELECT USING (true);
CREATE POLICY of_owners ON seedbed.embedded_column USING (pg_catalog.pg_has_role(
    (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = relation), 'USAGE'));

CREATE OR REPLACE FUNCTION seedbed._queue_script() RETURNS text LANGUAGE sql IMMUTABLE AS
$seedbed_queue_script$ SELECT $seedbed_queue_text$
@QUEUE@
$seedbed_queue_text$ $seedbed_queue_script$;

-- The queue is no part of the extension: it is dumped with its rows, and pipelines use it without the extension. It is
-- made here by the extension's owner; one that somebody else made is never run with the owner's rights, only granted.
CREATE OR REPLACE FUNCTION seedbed._ensure_queue() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('seedbed_queue.change') IS NULL THEN
        EXECUTE seedbed._queue_script();
    END IF;
    GRANT USAGE, CREATE ON SCHEMA seedbed_queue TO seedbed_admin;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA seedbed_queue TO seedbed_admin;
    GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA seedbed_queue TO seedbed_admin;
    -- Not those that triggers run: each writes into its own subscription, on behalf of a table's owner.
    EXECUTE (SELECT format('GRANT EXECUTE ON FUNCTION %s TO seedbed_admin', string_agg(p.oid::regprocedure::text, ', '))
             FROM pg_proc p WHERE p.pronamespace = 'seedbed_queue'::regnamespace AND p.proname NOT LIKE 'capture%');
END $$;

-- The queue's functions run with the caller's rights: so nobody may have written them whom the caller does not trust.
CREATE OR REPLACE FUNCTION seedbed._check_queue() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    super boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
    IF EXISTS (SELECT FROM (
            SELECT nspowner FROM pg_namespace WHERE nspname = 'seedbed_queue'
            UNION SELECT proowner FROM pg_proc
                WHERE pronamespace = 'seedbed_queue'::regnamespace AND proname NOT LIKE 'capture%'
            UNION SELECT relowner FROM pg_class WHERE relnamespace = 'seedbed_queue'::regnamespace
        ) AS o(owner) JOIN pg_roles r ON r.oid = o.owner
        WHERE NOT r.rolsuper AND (super OR NOT pg_has_role(r.oid, 'USAGE')))
    THEN
        RAISE EXCEPTION 'the schema seedbed_queue, or something in it, belongs to a role whose functions you would run'
            USING ERRCODE = 'insufficient_privilege', HINT = 'hand it and all in it over to a superuser';
    END IF;
END $$;

-- --- templates -----------------------------------------------------------------------------------------

-- The pieces of a template: {column}, {{ and }} for braces, and text.
CREATE OR REPLACE FUNCTION seedbed._pieces(content text) RETURNS TABLE (piece text, col text)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text;
BEGIN
    FOR found IN SELECT m[1] FROM regexp_matches(content, '(\{\{|\}\}|\{[^{}]+\}|[^{}]+|[{}])', 'g') AS m LOOP
        CASE
            WHEN found IN ('{', '}') THEN
                RAISE EXCEPTION 'the content "%" has a brace that stands alone', content
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'write {column} for a column, {{ for a brace';
            WHEN found IN ('{{', '}}') THEN piece := left(found, 1); col := NULL;
            WHEN found LIKE '{%' THEN piece := NULL; col := substr(found, 2, length(found) - 2);
            ELSE piece := found; col := NULL;
        END CASE;
        RETURN NEXT;
    END LOOP;
END $$;

-- One form of text whatever the session's settings are; NULL renders as nothing.
CREATE OR REPLACE FUNCTION seedbed._rendered(relation regclass, content text, alias text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
    kind text;
    parts text[] := '{}';
BEGIN
    FOR found IN SELECT p.piece, p.col FROM seedbed._pieces(content) AS p LOOP
        IF found.col IS NULL THEN
            parts := parts || quote_literal(found.piece);
            CONTINUE;
        END IF;
        kind := seedbed._type_of(relation, found.col);
        IF kind = 'bytea' THEN
            RAISE EXCEPTION 'the column "%" holds bytes, which are no text', found.col
                USING ERRCODE = 'datatype_mismatch', HINT = 'name a picture by image => ...';
        END IF;
        parts := parts || format(CASE
            WHEN kind LIKE 'timestamp%with time zone'
                THEN $x$coalesce(to_char(%1$s.%2$I AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '')$x$
            WHEN kind LIKE 'timestamp%' THEN $x$coalesce(to_char(%1$s.%2$I, 'YYYY-MM-DD"T"HH24:MI:SS.US'), '')$x$
            WHEN kind = 'date' THEN $x$coalesce(to_char(%1$s.%2$I, 'YYYY-MM-DD'), '')$x$
            ELSE $x$coalesce(%1$s.%2$I::text, '')$x$ END, alias, found.col);
    END LOOP;
    RETURN coalesce(nullif(array_to_string(parts, ' || '), ''), '''''');
END $$;

CREATE OR REPLACE FUNCTION seedbed._type_of(relation regclass, col text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind text;
BEGIN
    SELECT format_type(a.atttypid, a.atttypmod) INTO kind FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attname = col AND a.attnum > 0 AND NOT a.attisdropped;
    IF kind IS NULL THEN
        RAISE EXCEPTION 'the table % has no column "%"', relation, col USING ERRCODE = 'undefined_column';
    END IF;
    RETURN kind;
END $$;

-- --- declaring -----------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION seedbed._check_owner(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner oid;
    superuser boolean;
BEGIN
    SELECT c.relowner, r.rolsuper INTO owner, superuser
    FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = relation;
    IF NOT pg_has_role(owner, 'USAGE') THEN
        RAISE EXCEPTION 'you must be the owner of %', relation USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT superuser AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        -- The table's own triggers and indexes would run with a superuser's rights.
        RAISE EXCEPTION 'a superuser does not work on a table of %', pg_get_userbyid(owner)
            USING ERRCODE = 'insufficient_privilege', HINT = format('log in as %I, or SET ROLE %I', pg_get_userbyid(owner), pg_get_userbyid(owner));
    END IF;
END $$;

-- Vectors of `content`, a template such as '{title} {body}', of `image` (a column of bytes or of URLs), or of both
-- together, kept by seedbed.work. They stand in TABLE_NAME_store and are read from the view TABLE_NAME; with inline
-- in a column of the table. Returns where to read.
CREATE OR REPLACE FUNCTION seedbed.embed_column(
    relation regclass, content text DEFAULT NULL, name text DEFAULT 'embedding', image text DEFAULT NULL,
    inline boolean DEFAULT false, metric text DEFAULT 'cosine', endpoint text DEFAULT NULL
) RETURNS regclass LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    place text := coalesce(endpoint, nullif(current_setting('seedbed.endpoint', true), ''), 'default');
    made seedbed.embedded_column;
    probe record;
    keys text[];
    watched text[];
    owner text;
    named text;
    home text;
    watcher bigint;
BEGIN
    PERFORM seedbed._check_owner(relation);
    PERFORM seedbed._ensure_queue();
    PERFORM seedbed._check_queue();
    IF content IS NULL AND image IS NULL THEN
        RAISE EXCEPTION 'neither content nor image is said' USING ERRCODE = 'invalid_parameter_value',
            HINT = $x$content => '{title} {body}', or image => 'photo'$x$;
    END IF;
    IF metric NOT IN ('cosine', 'dot', 'l2') THEN
        RAISE EXCEPTION 'metric is "%"', metric USING ERRCODE = 'invalid_parameter_value', HINT = 'cosine, dot or l2';
    END IF;
    IF EXISTS (SELECT FROM seedbed.embedded_column e WHERE e.relation = relation AND e.name = name) THEN
        RAISE EXCEPTION '% has an embedded column "%" already', relation, name
            USING ERRCODE = 'duplicate_object', HINT = 'give another name, or drop it by seedbed.drop_column';
    END IF;
    SELECT array_agg(a.attname::text ORDER BY k.number) INTO keys
    FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, number)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = relation AND i.indisprimary;
    IF keys IS NULL THEN
        RAISE EXCEPTION '% has no primary key', relation USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'give it one: vectors are kept by it';
    END IF;
    PERFORM seedbed._rendered(relation, content, 'b');
    SELECT array_agg(DISTINCT p.col) INTO watched FROM seedbed._pieces(coalesce(content, '')) AS p WHERE p.col IS NOT NULL;
    watched := coalesce(watched, '{}');
    IF image IS NOT NULL THEN
        PERFORM seedbed._type_of(relation, image);
        watched := watched || image;
    END IF;
    IF cardinality(watched) = 0 THEN
        RAISE EXCEPTION 'the content "%" names no column', content USING ERRCODE = 'invalid_parameter_value',
            HINT = 'write {column}';
    END IF;

    SELECT p.space, p.dimensions INTO probe FROM seedbed._probe(place) AS p;
    IF probe.dimensions > 4000 THEN
        RAISE EXCEPTION 'vectors of % dimensions cannot be indexed', probe.dimensions
            USING ERRCODE = 'program_limit_exceeded', HINT = 'serve the model with fewer: seedbed serve --dimensions';
    END IF;
    SELECT c.relname, n.nspname, pg_get_userbyid(c.relowner) INTO named, home, owner
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;

    made.relation := relation; made.name := name; made.content := content; made.image := image;
    made.endpoint := place; made.space := probe.space; made.dimensions := probe.dimensions;
    -- An index of vector ends at 2,000 dimensions.
    made.half := probe.dimensions > 2000; made.metric := metric; made.key_columns := keys;
    made.subscription := format('column %s.%s.%s', home, named, name);
    made.created_at := clock_timestamp();
    made.store := seedbed._make_store(made, home, left(named || '_' || name, 57) || '_store', owner, NOT inline);
    IF inline THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', relation, name, seedbed._vector_type(made));
        made.visible := relation;
        EXECUTE seedbed._index_statement(made);
    ELSE
        made.visible := seedbed._make_view(made, home, named || '_' || name, owner);
    END IF;
    INSERT INTO seedbed.embedded_column SELECT made.*;
    watcher := seedbed_queue.watch(made.subscription::text, relation, keys, watched);
    EXECUTE format(
        'INSERT INTO seedbed_queue.change (subscription_id, key, op, seq) SELECT %s, k.key, ''insert'', '
        'nextval(''seedbed_queue.change_seq'') FROM (SELECT %s AS key FROM %s n ORDER BY 1) k '
        'WHERE k.key IS NOT NULL ON CONFLICT DO NOTHING',
        watcher, seedbed_queue.key_expression(relation, keys, 'n'::text), relation);
    RETURN made.visible;
END $$;

CREATE OR REPLACE FUNCTION seedbed._vector_type(made seedbed.embedded_column) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I(%s)', n.nspname, CASE WHEN made.half THEN 'halfvec' ELSE 'vector' END, made.dimensions)
    FROM pg_proc p JOIN pg_type t ON t.oid = p.prorettype JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE p.oid = 'seedbed.to_vector(bytea, integer)'::regprocedure
$$;

CREATE OR REPLACE FUNCTION seedbed._vector_schema() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
$$;

CREATE OR REPLACE FUNCTION seedbed._index_statement(made seedbed.embedded_column) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CREATE INDEX ON %s USING hnsw (%I %s.%s_%s_ops)',
        CASE WHEN made.visible = made.relation THEN made.relation ELSE made.store END,
        CASE WHEN made.visible = made.relation THEN made.name ELSE 'embedding' END,
        seedbed._vector_schema(), CASE WHEN made.half THEN 'halfvec' ELSE 'vector' END,
        CASE made.metric WHEN 'dot' THEN 'ip' ELSE made.metric END)
$$;

-- Who may read a row's vector: who may read the row. The subselect is a scalar one on purpose: EXISTS would be hashed
-- over the whole table for each query.
CREATE OR REPLACE FUNCTION seedbed._make_store(
    made seedbed.embedded_column, home text, called text, owner text, with_vectors boolean
) RETURNS regclass LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    store text := format('%I.%I', home, called);
    columns text;
    keys text;
    same text;
BEGIN
    SELECT string_agg(format('%I %s%s NOT NULL', a.attname, format_type(a.atttypid, a.atttypmod),
               CASE WHEN a.attcollation NOT IN (0, t.typcollation) THEN format(' COLLATE %I.%I', n.nspname, l.collname) ELSE '' END),
               ', ' ORDER BY k.number),
           string_agg(quote_ident(k.name), ', ' ORDER BY k.number),
           string_agg(format('b.%1$I = %2$I.%1$I', k.name, called), ' AND ' ORDER BY k.number)
    INTO columns, keys, same
    FROM unnest(made.key_columns) WITH ORDINALITY AS k(name, number)
    JOIN pg_attribute a ON a.attrelid = made.relation AND a.attname = k.name
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation l ON l.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = l.collnamespace;
    EXECUTE format('CREATE TABLE %s (%s, %s seedbed_hash bytea, seedbed_error text, seedbed_at timestamptz, PRIMARY KEY (%s))',
        store, columns, CASE WHEN with_vectors THEN format('embedding %s,', seedbed._vector_type(made)) ELSE '' END, keys);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', store);
    EXECUTE format('CREATE POLICY seedbed_as_the_row ON %s FOR SELECT USING ((SELECT true FROM %s b WHERE %s))',
        store, made.relation, same);
    PERFORM seedbed._copy_readers(made.relation, store);
    EXECUTE format('ALTER TABLE %s OWNER TO %I', store, owner);
    RETURN store::regclass;
END $$;

CREATE OR REPLACE FUNCTION seedbed._make_view(made seedbed.embedded_column, home text, called text, owner text)
RETURNS regclass LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shown text := format('%I.%I', home, called);
BEGIN
    EXECUTE format(
        'CREATE VIEW %s WITH (security_invoker = true) AS SELECT b.*, s.embedding AS %I FROM %s b JOIN %s s ON %s '
        'WHERE s.embedding IS NOT NULL',
        shown, made.name, made.relation, made.store,
        (SELECT string_agg(format('b.%1$I = s.%1$I', k), ' AND ') FROM unnest(made.key_columns) AS k));
    PERFORM seedbed._copy_readers(made.relation, shown);
    EXECUTE format('ALTER VIEW %s OWNER TO %I', shown, owner);
    RETURN shown::regclass;
END $$;

CREATE OR REPLACE FUNCTION seedbed._copy_readers(relation regclass, to_relation text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reader record;
BEGIN
    FOR reader IN SELECT a.grantee FROM pg_class c CROSS JOIN aclexplode(c.relacl) AS a
            WHERE c.oid = relation AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner LOOP
        EXECUTE format('GRANT SELECT ON %s TO %s', to_relation,
            CASE reader.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(reader.grantee)) END);
    END LOOP;
END $$;

-- Takes the column away with its vectors, its view and its subscription.
CREATE OR REPLACE FUNCTION seedbed.drop_column(relation regclass, name text DEFAULT 'embedding') RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    made seedbed.embedded_column;
BEGIN
    PERFORM seedbed._check_owner(relation);
    made := seedbed._column(relation, name);
    PERFORM seedbed._check_queue();
    PERFORM seedbed_queue.unwatch(made.subscription::text);
    IF made.visible = made.relation THEN
        EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', made.relation, made.name);
    ELSE
        EXECUTE format('DROP VIEW %s', made.visible);
    END IF;
    EXECUTE format('DROP TABLE %s', made.store);
    DELETE FROM seedbed.embedded_column e WHERE e.relation = relation AND e.name = name;
END $$;

CREATE OR REPLACE FUNCTION seedbed._column(relation regclass, name text) RETURNS seedbed.embedded_column
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    made seedbed.embedded_column;
    known bigint;
BEGIN
    SELECT count(*) INTO known FROM seedbed.embedded_column e WHERE e.relation = relation AND e.name = coalesce(name, e.name);
    IF known = 1 THEN
        SELECT e.* INTO made FROM seedbed.embedded_column e WHERE e.relation = relation AND e.name = coalesce(name, e.name);
        -- A table's owner writes its row here: nothing that it names may run code as whoever reads it.
        IF NOT EXISTS (SELECT FROM pg_class s JOIN pg_class b ON b.relowner = s.relowner
                WHERE s.oid = made.store AND s.relkind = 'r' AND b.oid = made.relation) THEN
            RAISE EXCEPTION 'the vectors of % are no table of its owner', relation
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = format('ALTER TABLE %s OWNER TO the owner', made.store);
        END IF;
        RETURN made;
    END IF;
    RAISE EXCEPTION '% has % embedded columns%', relation, CASE known WHEN 0 THEN 'no' ELSE 'several' END,
        CASE WHEN name IS NULL THEN '' ELSE format(' "%s"', name) END
        USING ERRCODE = 'undefined_object', HINT = 'seedbed.embed_column makes one; with several, say the name';
END $$;

-- --- working off ---------------------------------------------------------------------------------------

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
    OUT refill text
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
    refill := format($x$
        WITH gone AS (DELETE FROM %1$s s WHERE NOT EXISTS (SELECT FROM %2$s b WHERE %3$s))
        SELECT seedbed_queue.put($1::bigint, ARRAY(SELECT %4$s FROM %2$s n))$x$,
        made.store, made.relation, joined, seedbed_queue.key_expression(made.relation, made.key_columns, 'n'::text));
END $$;

-- One of them, with its subscription and statements.
CREATE OR REPLACE FUNCTION seedbed._column_to_work(of_relation text, called text) RETURNS TABLE (
    relation text, name text, endpoint text, space text, dimensions integer, stale boolean, picture text, watcher bigint,
    read text, locked text, store text, inlined text, drop text, refill text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made seedbed.embedded_column := seedbed._column(of_relation::regclass, called);
BEGIN
    RETURN QUERY SELECT made.relation::text, made.name, made.endpoint, made.space, made.dimensions,
        made.found_space IS NOT NULL,
        CASE WHEN made.image IS NULL THEN NULL WHEN seedbed._type_of(made.relation, made.image) = 'bytea' THEN 'bytes'
            ELSE 'url' END,
        s.id, w.read, w.locked, w.store, w.inlined, w.drop, w.refill
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

-- --- looking ---------------------------------------------------------------------------------------------

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
            SELECT count(*), count(*) FILTER (WHERE c.lease_until > clock_timestamp()),
                count(*) FILTER (WHERE c.attempts >= 5 AND coalesce(c.lease_until, '-infinity') < clock_timestamp()),
                clock_timestamp() - min(c.enqueued_at)
            FROM seedbed_queue.change c WHERE c.subscription_id = s.id
        ) AS q(waiting, taken, stuck, oldest);
END $$;
CREATE OR REPLACE VIEW seedbed.status AS SELECT * FROM seedbed._status();

-- --- searching -------------------------------------------------------------------------------------------

-- A condition of names and values: {"shop": 3}, {"shop": [1, 2]}, {"price": {"gte": 1, "lt": 5}}, {"shop": null}; and-ed.
CREATE OR REPLACE FUNCTION seedbed._condition(relation regclass, filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    field record;
    bound record;
    kind text;
    parts text[] := '{}';
    sign text;
BEGIN
    IF jsonb_typeof(filter) <> 'object' THEN
        RAISE EXCEPTION 'the filter is no object' USING ERRCODE = 'invalid_parameter_value', HINT = '{"column": value}';
    END IF;
    FOR field IN SELECT f.key, f.value FROM jsonb_each(filter) AS f LOOP
        kind := seedbed._type_of(relation, field.key);
        CASE jsonb_typeof(field.value)
            WHEN 'null' THEN parts := parts || format('b.%I IS NULL', field.key);
            WHEN 'array' THEN
                parts := parts || format('b.%I = ANY (ARRAY[%s]::%s[])', field.key,
                    (SELECT coalesce(string_agg(quote_nullable(v), ', '), '') FROM jsonb_array_elements_text(field.value) AS v), kind);
            WHEN 'object' THEN
                FOR bound IN SELECT o.key, o.value FROM jsonb_each_text(field.value) AS o LOOP
                    sign := CASE bound.key WHEN 'gt' THEN '>' WHEN 'gte' THEN '>=' WHEN 'lt' THEN '<' WHEN 'lte' THEN '<=' END;
                    IF sign IS NULL THEN
                        RAISE EXCEPTION 'the filter of "%" has "%"', field.key, bound.key
                            USING ERRCODE = 'invalid_parameter_value', HINT = 'gt, gte, lt, lte';
                    END IF;
                    parts := parts || format('b.%I %s %L::%s', field.key, sign, bound.value, kind);
                END LOOP;
            ELSE parts := parts || format('b.%I = %L::%s', field.key, field.value #>> '{}', kind);
        END CASE;
    END LOOP;
    RETURN coalesce(nullif(array_to_string(parts, ' AND '), ''), 'true');
END $$;

CREATE OR REPLACE FUNCTION seedbed._search(
    relation regclass, asked jsonb, k integer, filter jsonb, name text
) RETURNS TABLE (score double precision, "row" jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET hnsw.iterative_scan = 'strict_order' AS $$
#variable_conflict use_variable
DECLARE
    made seedbed.embedded_column := seedbed._column(relation, name);
    inline boolean := made.visible = made.relation;
    distance text;
    statement text;
BEGIN
    IF k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is %', k USING ERRCODE = 'invalid_parameter_value', HINT = '1 to 10,000';
    END IF;
    distance := format('%s OPERATOR(%s.%s) ($1::%s)',
        CASE WHEN inline THEN format('b.%I', made.name) ELSE 's.embedding' END, seedbed._vector_schema(),
        CASE made.metric WHEN 'cosine' THEN '<=>' WHEN 'dot' THEN '<#>' ELSE '<->' END, seedbed._vector_type(made));
    statement := format(
        'SELECT %s(%s), to_jsonb(b.*) - %L FROM %s b%s WHERE %s ORDER BY %s LIMIT $2',
        CASE made.metric WHEN 'cosine' THEN '1 - ' ELSE '- ' END, distance, made.name, relation,
        CASE WHEN inline THEN '' ELSE format(' JOIN %s s ON %s', made.store,
            (SELECT string_agg(format('b.%1$I = s.%1$I', c), ' AND ') FROM unnest(made.key_columns) AS c)) END,
        seedbed._condition(relation, filter) || CASE WHEN inline THEN format(' AND b.%I IS NOT NULL', made.name) ELSE ' AND s.embedding IS NOT NULL' END,
        distance);
    RETURN QUERY EXECUTE statement USING seedbed._embed_query(made.endpoint, made.space, asked), k;
END $$;

-- The k rows nearest to words, best first: score (higher is better) and the row. Who may not see a row does not find it.
CREATE OR REPLACE FUNCTION seedbed.search(
    relation regclass, query text, k integer DEFAULT 10, filter jsonb DEFAULT '{}', name text DEFAULT NULL
) RETURNS TABLE (score double precision, "row" jsonb) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM seedbed._search(relation, to_jsonb(query), k, filter, name)
$$;
