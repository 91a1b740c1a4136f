-- Searches of embedded columns, by names and values and never by SQL text.

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

