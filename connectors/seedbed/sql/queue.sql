-- Changed rows of watched tables, queued for whoever keeps vectors of them in step: `seedbed watch` and the extension
-- run this same text. It needs CREATE on the database, and no superuser. Idempotent.

SELECT pg_advisory_xact_lock(hashtext('seedbed_queue'));
CREATE SCHEMA IF NOT EXISTS seedbed_queue;
COMMENT ON SCHEMA seedbed_queue IS 'Seedbed''s queue of changed rows, version 1';

-- One watcher's interest in one table: none takes another's rows.
CREATE TABLE IF NOT EXISTS seedbed_queue.subscription (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    relation regclass NOT NULL,
    key_columns text[] NOT NULL,
    watched_columns text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Logged, as a change that is lost is a vector that stays wrong. One row a key, however often it changed.
-- No index but the key's: takers walk in key order, so each change costs one index entry.
CREATE TABLE IF NOT EXISTS seedbed_queue.change (
    subscription_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    op text NOT NULL,
    seq bigint NOT NULL,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    lease_owner text,
    lease_until timestamptz,
    PRIMARY KEY (subscription_id, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000);

CREATE SEQUENCE IF NOT EXISTS seedbed_queue.change_seq CACHE 1;

-- --- watching ------------------------------------------------------------------------------------------

-- The SQL of a row's canonical key: a JSON array of texts, as identity.canonical_key makes it in Python.
CREATE OR REPLACE FUNCTION seedbed_queue.key_expression(relation regclass, key_columns text[], alias text)
RETURNS text LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
    kind text;
    is_enum boolean;
    col text;
    part text;
    parts text[] := '{}';
BEGIN
    FOREACH name IN ARRAY key_columns LOOP
        SELECT t.typname, t.typtype = 'e' INTO kind, is_enum
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = relation AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the table % has no column "%"', relation, name USING ERRCODE = 'undefined_column';
        END IF;
        col := format('%s.%I', alias, name);
        part := CASE
            WHEN kind IN ('int2', 'int4', 'int8', 'uuid', 'bool') THEN format('''"'' || %s::text || ''"''', col)
            WHEN kind IN ('text', 'varchar', 'name', 'bpchar', 'citext', 'numeric') OR is_enum
                THEN format('to_json(%s::text)::text', col)
            WHEN kind = 'bytea' THEN format('''"'' || encode(%s, ''hex'') || ''"''', col)
            WHEN kind = 'date' THEN format($x$CASE WHEN %1$s BETWEEN '0001-01-01' AND '9999-12-31'
                THEN '"' || to_char(%1$s, 'YYYY-MM-DD') || '"' END$x$, col)
            WHEN kind IN ('timestamp', 'timestamptz') THEN format($x$CASE WHEN %1$s BETWEEN '0001-01-01'
                AND '9999-12-31 23:59:59.999999' THEN to_char(%2$s, '"\""YYYY-MM-DD"T"HH24:MI:SS.US"Z\""') END$x$,
                col, col || CASE kind WHEN 'timestamptz' THEN ' AT TIME ZONE ''UTC''' ELSE '' END)
        END;
        IF part IS NULL THEN
            RAISE EXCEPTION 'the key column "%" is of type %, which has no fixed text form', name, kind
                USING ERRCODE = 'feature_not_supported',
                      HINT = 'name a key of integer, text, uuid, date, timestamp, decimal or bytes columns';
        END IF;
        parts := parts || part;
    END LOOP;
    RETURN '''['' || ' || array_to_string(parts, ' || '','' || ') || ' || '']''';
END $$;

-- Statement triggers see a whole statement's rows at once; a partition's or a child's statements would pass its
-- parent's by, and the parent's those.
CREATE OR REPLACE FUNCTION seedbed_queue.check_relation(relation regclass)
RETURNS void LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
    reason text;
BEGIN
    SELECT c.relkind, c.relpersistence, c.relispartition,
           EXISTS (SELECT FROM pg_inherits i WHERE relation IN (i.inhparent, i.inhrelid)) AS inherits
    INTO found FROM pg_class c WHERE c.oid = relation;
    reason := CASE
        WHEN found.relkind = 'p' OR found.relispartition THEN 'is partitioned, or a partition'
        WHEN found.relkind <> 'r' THEN 'is no table'
        WHEN found.inherits THEN 'inherits, or is inherited from'
        WHEN found.relpersistence = 't' THEN 'is temporary'
    END;
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION 'the changes of % cannot be queued: it %', relation, reason
            USING ERRCODE = 'wrong_object_type', HINT = 'see its changes by scan or by watermark';
    END IF;
END $$;

-- Queues the changes of `watched_columns` of a table under `name`, from now on; again for other columns. The caller
-- must be the table's owner, or a member of it.
CREATE OR REPLACE FUNCTION seedbed_queue.watch(
    name text, relation regclass, key_columns text[], watched_columns text[]
) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    watcher bigint;
    capture text;
    owner name;
    upsert text;
    quick text;
    inserted text;
    deleted text;
    old_key text;
    new_key text;
    joined text;
    compared text[] := key_columns || watched_columns;
    old_compared text;
    new_compared text;
    known bigint;
    event text;
BEGIN
    PERFORM seedbed_queue.check_relation(relation);
    SELECT count(*) INTO known FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attname = ANY (compared) AND a.attnum > 0 AND NOT a.attisdropped;
    IF known < (SELECT count(DISTINCT c) FROM unnest(compared) c) THEN
        RAISE EXCEPTION 'the table % has not all of the columns %', relation, array_to_string(compared, ', ')
            USING ERRCODE = 'undefined_column';
    END IF;
    PERFORM seedbed_queue.unwatch(name);
    INSERT INTO seedbed_queue.subscription AS s (name, relation, key_columns, watched_columns)
        VALUES (name, relation, key_columns, watched_columns) RETURNING s.id INTO watcher;
    capture := format('seedbed_queue.capture_%s', watcher);
    SELECT pg_get_userbyid(c.relowner) INTO owner FROM pg_class c WHERE c.oid = relation;

    old_key := seedbed_queue.key_expression(relation, key_columns, 'o');
    new_key := seedbed_queue.key_expression(relation, key_columns, 'n');
    inserted := format('SELECT %s AS key FROM seedbed_new n', new_key);
    deleted := format('SELECT %s AS key FROM seedbed_old o', old_key);
    SELECT string_agg(format('o.%1$I = n.%1$I', k), ' AND ') INTO joined FROM unnest(key_columns) AS k;
    SELECT string_agg(format('o.%I', c), ', '), string_agg(format('n.%I', c), ', ') INTO old_compared, new_compared
        FROM unnest(compared) AS c;

    -- Keys in order, so that two statements never wait for each other crosswise. A lease outlasts a new change: who
    -- holds it finishes first, and no older content overtakes a newer one.
    upsert := format($x$
        INSERT INTO seedbed_queue.change AS c (subscription_id, key, op, seq)
        SELECT %s, k.key, lower(TG_OP), number
        FROM (SELECT DISTINCT key COLLATE "C" AS key FROM (%%1$s) AS found WHERE key IS NOT NULL ORDER BY 1) AS k
        ON CONFLICT (subscription_id, key) DO UPDATE SET
            op = excluded.op, seq = nextval('seedbed_queue.change_seq'), attempts = 0,
            enqueued_at = CASE WHEN c.lease_until > clock_timestamp() THEN excluded.enqueued_at ELSE c.enqueued_at END
    $x$, watcher);
    -- ON CONFLICT doubles the time of many rows. Keys that are new to the queue do without; where one is not, the
    -- statement is done again. Not for few rows: a subtransaction is dearer than they are.
    quick := format($x$
        BEGIN
            INSERT INTO seedbed_queue.change (subscription_id, key, op, seq)
            SELECT %s, k.key, lower(TG_OP), number
            FROM (SELECT key COLLATE "C" AS key FROM (%%1$s) AS found WHERE key IS NOT NULL ORDER BY 1) AS k;
        EXCEPTION WHEN unique_violation THEN %%2$s;
        END
    $x$, watcher);

    EXECUTE format($f$
        CREATE FUNCTION %1$s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp AS $body$
        DECLARE
            -- A look at the queue would make serializable writers of other rows collide: theirs is found by polling.
            idle boolean := current_setting('transaction_isolation') <> 'serializable'
                AND NOT EXISTS (SELECT FROM seedbed_queue.change WHERE subscription_id = %2$s);
            number bigint := nextval('seedbed_queue.change_seq');
            changed bigint;
        BEGIN
            IF (SELECT count(*) FROM pg_attribute WHERE attrelid = TG_RELID AND attname = ANY (%7$L::name[])) < %8$s THEN
                -- A column was dropped or renamed. The writer goes on, and the watcher has to look at all rows.
                RAISE WARNING 'seedbed: "%%" has lost a watched column, of %%', TG_TABLE_NAME, %7$L
                    USING HINT = 'name its columns anew in the pipeline, then `seedbed watch` again';
                %6$s;
            ELSIF TG_OP = 'INSERT' THEN
                IF (SELECT count(*) FROM (SELECT FROM seedbed_new LIMIT 1000) AS n) = 1000 THEN %9$s;
                ELSE %3$s;
                END IF;
            ELSIF TG_OP = 'DELETE' THEN
                IF idle AND (SELECT count(*) FROM (SELECT FROM seedbed_old LIMIT 1000) AS o) = 1000 THEN %10$s;
                ELSE %4$s;
                END IF;
            ELSIF TG_OP = 'UPDATE' THEN %5$s;
            ELSE %6$s;
            END IF;
            GET DIAGNOSTICS changed = ROW_COUNT;
            IF idle AND changed > 0 THEN
                PERFORM pg_notify('seedbed_queue', '%2$s');
            END IF;
            RETURN NULL;
        END $body$
    $f$, capture, watcher,
        format(upsert, inserted), format(upsert, deleted),
        format(upsert, format(
            'SELECT unnest(ARRAY[%s, %s]) AS key FROM seedbed_old o FULL JOIN seedbed_new n ON %s '
            'WHERE NOT record_image_eq(ROW(%s), ROW(%s))', old_key, new_key, joined, old_compared, new_compared)),
        format(upsert, 'SELECT '''' AS key'), compared, known,
        format(quick, inserted, format(upsert, inserted)), format(quick, deleted, format(upsert, deleted)));
    EXECUTE format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', capture);
    IF owner <> current_user THEN
        PERFORM seedbed_queue.allow(owner);
        EXECUTE format('ALTER FUNCTION %s() OWNER TO %I', capture, owner);
    END IF;

    FOREACH event IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        EXECUTE format('CREATE TRIGGER seedbed_%s_%s AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %s()',
            watcher, event, event, relation,
            CASE event WHEN 'insert' THEN 'REFERENCING NEW TABLE AS seedbed_new'
                       WHEN 'update' THEN 'REFERENCING OLD TABLE AS seedbed_old NEW TABLE AS seedbed_new'
                       WHEN 'delete' THEN 'REFERENCING OLD TABLE AS seedbed_old' ELSE '' END,
            capture);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER seedbed_%s_%s', relation, watcher, event);
    END LOOP;
    RETURN watcher;
END $$;

-- Ends a subscription with its changes; whether there was one. A table that is gone took its triggers with it.
CREATE OR REPLACE FUNCTION seedbed_queue.unwatch(name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
#variable_conflict use_variable
DECLARE
    watcher bigint;
BEGIN
    SELECT s.id INTO watcher FROM seedbed_queue.subscription s WHERE s.name = name;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP FUNCTION IF EXISTS seedbed_queue.capture_%s() CASCADE', watcher);
    DELETE FROM seedbed_queue.change c WHERE c.subscription_id = watcher;
    DELETE FROM seedbed_queue.subscription s WHERE s.id = watcher;
    RETURN true;
END $$;

-- Lets a role watch tables of its own and work off queues. To be called by the schema's owner.
CREATE OR REPLACE FUNCTION seedbed_queue.allow(role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA seedbed_queue TO %I', role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA seedbed_queue TO %I', role);
    EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA seedbed_queue TO %I', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', (
        SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p
        WHERE p.pronamespace = 'seedbed_queue'::regnamespace AND p.proname NOT LIKE 'capture%'), role);
END $$;

-- --- working off ---------------------------------------------------------------------------------------
-- Workers never wait for a row that a writer holds, as others may wait for theirs: it is about to change again.

-- The last change's number: later ones are beyond a pass that began with it.
CREATE OR REPLACE FUNCTION seedbed_queue.newest() RETURNS bigint LANGUAGE sql SET search_path = pg_catalog, pg_temp AS
$$ SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM seedbed_queue.change_seq $$;

-- Leases at most `most` changes, in key order after `after`. The empty key stands for all rows and is taken apart.
-- What was taken five times and never finished stays where it is, for somebody to look at.
CREATE OR REPLACE FUNCTION seedbed_queue.take(
    watcher bigint, taker text, after text, upto bigint, most integer, lease interval
) RETURNS TABLE (key text, seq bigint) LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH free AS MATERIALIZED (
        SELECT c.key FROM seedbed_queue.change c
        WHERE c.subscription_id = watcher AND c.key > after COLLATE "C" AND c.seq <= upto AND c.attempts < 5
          AND (c.lease_until IS NULL OR c.lease_until < clock_timestamp())
        ORDER BY c.key LIMIT most FOR UPDATE SKIP LOCKED
    )
    UPDATE seedbed_queue.change c
    SET lease_owner = taker, lease_until = clock_timestamp() + lease, attempts = c.attempts + 1
    FROM free WHERE c.subscription_id = watcher AND c.key = free.key
    RETURNING c.key, c.seq
$$;

-- Whether a change that concerns all rows stands there; it is leased now.
CREATE OR REPLACE FUNCTION seedbed_queue.take_all_rows(watcher bigint, taker text, lease interval) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH taken AS (
        UPDATE seedbed_queue.change c SET lease_owner = taker, lease_until = clock_timestamp() + lease
        WHERE c.subscription_id = watcher AND c.key = ''
          AND (c.lease_until IS NULL OR c.lease_until < clock_timestamp()) RETURNING 1
    ) SELECT EXISTS (SELECT FROM taken)
$$;

-- All rows were seen since `upto`, by the only one at work: that settles also what could never be finished by itself.
CREATE OR REPLACE FUNCTION seedbed_queue.finish_all_rows(watcher bigint, upto bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH done AS (
        DELETE FROM seedbed_queue.change c
        WHERE c.subscription_id = watcher AND (c.key = '' OR c.attempts >= 5) AND c.seq <= upto RETURNING 1
    ) SELECT count(*) FROM done
$$;

-- How many of these keys a taker holds still.
CREATE OR REPLACE FUNCTION seedbed_queue.held(watcher bigint, taker text, keys text[]) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FROM seedbed_queue.change c WHERE c.subscription_id = watcher AND c.key = ANY (keys)
        AND c.lease_owner = taker AND c.lease_until > clock_timestamp()
$$;

-- What stands in a queue, what of it somebody holds now, what was taken five times and never finished, and the oldest's age.
CREATE OR REPLACE FUNCTION seedbed_queue.waiting(
    watcher bigint, OUT changes bigint, OUT taken bigint, OUT stuck bigint, OUT oldest interval
) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*), count(*) FILTER (WHERE c.lease_until > clock_timestamp()),
        count(*) FILTER (WHERE c.attempts >= 5 AND coalesce(c.lease_until, '-infinity') < clock_timestamp()),
        clock_timestamp() - min(c.enqueued_at)
    FROM seedbed_queue.change c WHERE c.subscription_id = watcher
$$;

CREATE OR REPLACE FUNCTION seedbed_queue.renew(watcher bigint, taker text, lease interval) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH mine AS MATERIALIZED (
        SELECT c.key FROM seedbed_queue.change c WHERE c.subscription_id = watcher AND c.lease_owner = taker
          AND c.lease_until > clock_timestamp() ORDER BY c.key FOR UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE seedbed_queue.change c SET lease_until = clock_timestamp() + lease
        FROM mine WHERE c.subscription_id = watcher AND c.key = mine.key RETURNING 1
    ) SELECT count(*) FROM kept
$$;

-- Takes what was worked off out of the queue. A key that changed again since has a number beyond `upto` and stays.
CREATE OR REPLACE FUNCTION seedbed_queue.finish(watcher bigint, taker text, keys text[], upto bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH mine AS MATERIALIZED (
        SELECT c.key FROM seedbed_queue.change c
        WHERE c.subscription_id = watcher AND c.key = ANY (keys) AND c.lease_owner = taker AND c.seq <= upto
        ORDER BY c.key FOR UPDATE SKIP LOCKED
    ), done AS (
        DELETE FROM seedbed_queue.change c USING mine WHERE c.subscription_id = watcher AND c.key = mine.key RETURNING 1
    ) SELECT count(*) FROM done
$$;

-- Gives back what was taken and not finished; not counted as an attempt, since this one has lived to say so. How many
-- could not be, as writers hold them just now.
CREATE OR REPLACE FUNCTION seedbed_queue.release(watcher bigint, taker text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH mine AS MATERIALIZED (
        SELECT c.key FROM seedbed_queue.change c WHERE c.subscription_id = watcher AND c.lease_owner = taker
        ORDER BY c.key FOR UPDATE SKIP LOCKED
    ), given AS (
        UPDATE seedbed_queue.change c
        SET lease_owner = NULL, lease_until = NULL, attempts = greatest(c.attempts - 1, 0)
        FROM mine WHERE c.subscription_id = watcher AND c.key = mine.key RETURNING 1
    )
    SELECT (SELECT count(*) FROM seedbed_queue.change c WHERE c.subscription_id = watcher AND c.lease_owner = taker)
        - (SELECT count(*) FROM given)
$$;

-- Queues keys by hand: rows that failed before, or those of a table that is to be filled for the first time.
CREATE OR REPLACE FUNCTION seedbed_queue.put(watcher bigint, keys text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO seedbed_queue.change AS c (subscription_id, key, op, seq)
    SELECT watcher, k.key, 'update', nextval('seedbed_queue.change_seq')
    FROM (SELECT DISTINCT u COLLATE "C" AS key FROM unnest(keys) AS u ORDER BY 1) AS k
    ON CONFLICT (subscription_id, key) DO UPDATE SET seq = nextval('seedbed_queue.change_seq'), attempts = 0
$$;

-- Queues all rows of the subscription's table.
CREATE OR REPLACE FUNCTION seedbed_queue.put_all(watcher bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    watched seedbed_queue.subscription;
BEGIN
    SELECT s.* INTO STRICT watched FROM seedbed_queue.subscription s WHERE s.id = watcher;
    EXECUTE format(
        'INSERT INTO seedbed_queue.change AS c (subscription_id, key, op, seq) '
        'SELECT $1, k.key, ''update'', nextval(''seedbed_queue.change_seq'') '
        'FROM (SELECT %s COLLATE "C" AS key FROM %s n ORDER BY 1) AS k WHERE k.key IS NOT NULL '
        'ON CONFLICT (subscription_id, key) DO UPDATE SET seq = nextval(''seedbed_queue.change_seq''), attempts = 0',
        '(' || seedbed_queue.key_expression(watched.relation, watched.key_columns, 'n'::text) || ')', watched.relation)
        USING watcher;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA seedbed_queue FROM PUBLIC;
