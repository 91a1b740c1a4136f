-- Who may what: nothing is PUBLIC's.

REVOKE ALL ON ALL ROUTINES IN SCHEMA seedbed FROM PUBLIC;
GRANT USAGE ON SCHEMA seedbed TO seedbed_user;
GRANT EXECUTE ON FUNCTION
    seedbed.embed(text, text), seedbed.embed(text[], text), seedbed.embed_half(text, text),
    seedbed.embed_half(text[], text), seedbed.embed_content(jsonb, text), seedbed.embed_image(bytea, text),
    seedbed.to_vector(bytea, integer), seedbed.search(regclass, text, integer, jsonb, text),
    seedbed._search(regclass, jsonb, integer, jsonb, text), seedbed._embed_query(text, text, jsonb),
    seedbed._condition(regclass, jsonb), seedbed._column(regclass, text), seedbed._type_of(regclass, text),
    seedbed._vector_type(seedbed.embedded_column), seedbed._vector_schema()
    TO seedbed_user;
GRANT SELECT ON seedbed.embedded_column TO seedbed_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON seedbed.endpoint, seedbed.embedded_column TO seedbed_admin;
GRANT SELECT ON seedbed.status TO seedbed_admin;
GRANT EXECUTE ON PROCEDURE seedbed.work(integer, integer, bigint) TO seedbed_admin;
GRANT EXECUTE ON FUNCTION
    seedbed.embed_column(regclass, text, text, text, boolean, text, text), seedbed.drop_column(regclass, text),
    seedbed._ensure_queue(), seedbed._pieces(text), seedbed._rendered(regclass, text, text),
    seedbed._check_owner(regclass), seedbed._probe(text), seedbed._index_statement(seedbed.embedded_column),
    seedbed._make_store(seedbed.embedded_column, text, text, text, boolean),
    seedbed._make_view(seedbed.embedded_column, text, text, text), seedbed._copy_readers(regclass, text),
    seedbed._key_part(regclass, text, bigint), seedbed._column_statements(seedbed.embedded_column),
    seedbed._build_index(text, text), seedbed._columns_to_work(),
    seedbed._column_to_work(text, text), seedbed._check_queue(), seedbed._stale(text, text, text), seedbed._status()
    TO seedbed_admin;
