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
    PERFORM seedbed_queue.put_all(seedbed_queue.watch(made.subscription, relation, keys, watched));
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
    PERFORM seedbed_queue.unwatch(made.subscription);
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

