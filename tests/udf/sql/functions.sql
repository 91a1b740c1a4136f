-- What each function answers, by vectors of 32 dimensions.
SELECT vector_dims(seedbed.embed('red running shoes'));
SELECT vector_dims(v) FROM unnest(seedbed.embed(ARRAY['a', NULL, 'b'])) AS v;
SELECT pg_typeof(seedbed.embed_half('a')), pg_typeof(seedbed.embed_half(ARRAY['a']));
SELECT vector_dims(seedbed.embed_content('[{"text": "a"}]'));
SELECT round((1 - (seedbed.embed('a') <=> seedbed.embed_content('{"text": "a"}')))::numeric, 5) AS same;
SELECT seedbed.to_vector('\x0000803f00000040', 2);
SELECT seedbed.embed(NULL::text) IS NULL AS nothing;
SELECT array_length(seedbed.embed(ARRAY[]::text[]), 1) IS NULL AS none;
