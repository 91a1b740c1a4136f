COMMENT ON TABLE seedbed.endpoint IS
    'Where `seedbed serve` listens, by name: unix:/path/to/socket, http://host:port or https://host:port (ca: a file of certificates to trust, on this machine). The setting seedbed.endpoint holds a name; `default` without it.';

DO $$ BEGIN
    CREATE ROLE seedbed_admin NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
GRANT seedbed_user TO seedbed_admin;

-- --- vectors of bytes ----------------------------------------------------------------------------------

-- pgvector's own, by its library: wherever its schema is. A norm in double precision is finite exactly where all numbers
-- are; NaN sorts above all.
CREATE OR REPLACE FUNCTION seedbed._norm(vector) RETURNS double precision
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS '$libdir/vector', 'vector_norm';

-- In plpgsql, as SQL that is not inlined costs twenty microseconds a call; without a setting of its own, which costs as
-- much: every name is qualified, and it is called by functions alone that have theirs.
CREATE OR REPLACE FUNCTION seedbed._checked(made vector) RETURNS vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF seedbed._norm(made) OPERATOR(pg_catalog.<) 'Infinity'::pg_catalog.float8 THEN
        RETURN made;
    END IF;
    RAISE EXCEPTION 'these bytes are no vector: they hold NaN or infinite numbers' USING ERRCODE = 'data_exception',
        HINT = 'a vector is little-endian float4 numbers, none of them NaN or infinite';
END $$;

-- What stands before a vector's numbers (vector.h of pgvector): int16 dimensions, int16 zero.
CREATE OR REPLACE FUNCTION seedbed._head(dimensions integer) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN set_byte(set_byte('\x00000000'::bytea, 0, dimensions & 255), 1, dimensions >> 8);

DO $$ BEGIN
    IF current_setting('server_version_num')::int < 150000
        OR vector_dims(seedbed._as_vector(seedbed._head(1), '\x0000803f')) <> 1
    THEN
        RAISE EXCEPTION 'the extension needs PostgreSQL 15 or later, on a little-endian machine'
            USING ERRCODE = 'feature_not_supported';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION seedbed.to_vector(payload bytea, dimensions integer) RETURNS vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF dimensions NOT BETWEEN 1 AND 16000 OR octet_length(payload) <> 4 * dimensions THEN
        RAISE EXCEPTION 'these bytes are no vector: % bytes for % dimensions', octet_length(payload), dimensions
            USING ERRCODE = 'data_exception', HINT = 'a vector has 1 to 16,000 dimensions of four bytes each';
    END IF;
    RETURN seedbed._checked(seedbed._as_vector(seedbed._head(dimensions), payload));
END $$;
COMMENT ON FUNCTION seedbed.to_vector(bytea, integer) IS
    'A vector of little-endian float4 numbers, after its length and its numbers were checked.';

-- --- asking the server -----------------------------------------------------------------------------------

-- PARALLEL RESTRICTED: one connection a session, and cancelled in the leader; other parts of a plan may be parallel.
CREATE OR REPLACE FUNCTION seedbed._embed(endpoint text, address text, ca text, input text, kind text) RETURNS bytea
LANGUAGE plpython3u STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
@LOAD@
    return udf.embed(plpy, GD, udf.Place(endpoint, address, ca), input, kind)
$$;

CREATE OR REPLACE FUNCTION seedbed._embed_all(endpoint text, address text, ca text, input text[], kind text)
RETURNS bytea LANGUAGE plpython3u STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
@LOAD@
    return udf.embed_all(plpy, GD, udf.Place(endpoint, address, ca), input, kind)
$$;

CREATE OR REPLACE FUNCTION seedbed._embed_content(
    endpoint text, address text, ca text, content text, kind text, space text
) RETURNS bytea LANGUAGE plpython3u STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
@LOAD@
    return udf.embed_content(plpy, GD, udf.Place(endpoint, address, ca), content, kind, space)
$$;

CREATE OR REPLACE FUNCTION seedbed._embed_image(endpoint text, address text, ca text, image bytea, kind text)
RETURNS bytea LANGUAGE plpython3u STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
@LOAD@
    return udf.embed_image(plpy, GD, udf.Place(endpoint, address, ca), image, kind)
$$;

CREATE OR REPLACE FUNCTION seedbed._probe(endpoint text, OUT space text, OUT dimensions integer)
LANGUAGE plpython3u STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
@LOAD@
    return udf.probe(plpy, GD, endpoint)
$$;

-- The endpoint that the session has chosen by its name; an empty setting is none. For functions of the owner's rights.
CREATE OR REPLACE VIEW seedbed._chosen AS
    SELECT n.name, e.address, e.ca
    FROM (SELECT coalesce(nullif(current_setting('seedbed.endpoint', true), ''), 'default') AS name) n
    LEFT JOIN seedbed.endpoint e ON e.name = n.name;

CREATE OR REPLACE FUNCTION seedbed.embed(input text, kind text DEFAULT 'query') RETURNS vector
LANGUAGE sql STABLE STRICT SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT seedbed._checked(seedbed._as_vector(seedbed._embed(p.name, p.address, p.ca, input, kind), ''))
    FROM seedbed._chosen p;
END;
COMMENT ON FUNCTION seedbed.embed(text, text) IS
    'The embedding of a text: kind query or document. In ORDER BY write (SELECT seedbed.embed(...)): one call, and the index is used.';

CREATE OR REPLACE FUNCTION seedbed.embed(input text[], kind text DEFAULT 'document') RETURNS vector[]
LANGUAGE sql STABLE STRICT SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- All vectors come as one value and are cut here: no Python and no row for each. What is cut depends on the answer
    -- (LATERAL), so that this is asked for once.
    SELECT coalesce(array_agg(seedbed._checked(seedbed._as_vector(a.head, cut.part))), '{}'::vector[]) FROM (
        SELECT p.payload, p.size, seedbed._head(p.size / 4) AS head FROM (
            SELECT q.payload, octet_length(q.payload) / nullif(q.texts, 0) AS size FROM (
                SELECT seedbed._embed_all(c.name, c.address, c.ca, input, kind) AS payload,
                    (SELECT count(u) FROM unnest(input) AS u)::integer AS texts
                FROM seedbed._chosen c OFFSET 0
            ) q OFFSET 0
        ) p OFFSET 0
    ) a CROSS JOIN LATERAL (
        SELECT CASE WHEN t.text IS NOT NULL THEN substr(a.payload, (t.rank - 1) * a.size + 1, a.size) END AS part FROM (
            SELECT u.text, u.number, (count(u.text) OVER (ORDER BY u.number))::integer AS rank
            FROM unnest(input) WITH ORDINALITY AS u(text, number)
        ) t ORDER BY t.number
    ) cut;
END;
COMMENT ON FUNCTION seedbed.embed(text[], text) IS 'The embeddings of many texts by one call; NULL for NULL.';

CREATE OR REPLACE FUNCTION seedbed.embed_half(input text, kind text DEFAULT 'query') RETURNS halfvec
LANGUAGE sql STABLE STRICT PARALLEL RESTRICTED RETURN seedbed.embed(input, kind)::halfvec;

CREATE OR REPLACE FUNCTION seedbed.embed_half(input text[], kind text DEFAULT 'document') RETURNS halfvec[]
LANGUAGE sql STABLE STRICT PARALLEL RESTRICTED RETURN seedbed.embed(input, kind)::halfvec[];

CREATE OR REPLACE FUNCTION seedbed.embed_content(content jsonb, kind text DEFAULT 'query') RETURNS vector
LANGUAGE sql STABLE STRICT SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT seedbed._checked(seedbed._as_vector(seedbed._embed_content(p.name, p.address, p.ca, content::text, kind, NULL), ''))
    FROM seedbed._chosen p;
END;
COMMENT ON FUNCTION seedbed.embed_content(jsonb, text) IS
    'The embedding of [{"text": ...}, {"image": URL}, {"video": URL}] together. URLs (data: or of the web) are the server''s to fetch.';

CREATE OR REPLACE FUNCTION seedbed.embed_image(image bytea, kind text DEFAULT 'query') RETURNS vector
LANGUAGE sql STABLE STRICT SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT seedbed._checked(seedbed._as_vector(seedbed._embed_image(p.name, p.address, p.ca, image, kind), ''))
    FROM seedbed._chosen p;
END;
COMMENT ON FUNCTION seedbed.embed_image(bytea, text) IS 'The embedding of a picture''s file.';

-- For seedbed.search: a column's own endpoint, and no other space than its own.
CREATE OR REPLACE FUNCTION seedbed._embed_query(endpoint text, space text, asked jsonb) RETURNS vector
LANGUAGE sql STABLE SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT seedbed._checked(seedbed._as_vector(
        seedbed._embed_content(endpoint, e.address, e.ca, asked::text, 'query', space), ''))
    FROM (VALUES (endpoint)) n(name) LEFT JOIN seedbed.endpoint e ON e.name = n.name;
END;

DROP FUNCTION IF EXISTS seedbed._embed(text, text, text, text);

