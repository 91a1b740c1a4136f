-- A column that keeps itself embedded, from its making to its end.
CREATE TABLE shoe (id int PRIMARY KEY, title text, price numeric, stock int);
INSERT INTO shoe VALUES (1, 'red running shoes', 80, 3), (2, 'blue rain boots', 40, 0), (3, 'a wool coat', 120, 9);
SELECT seedbed.embed_column('shoe', '{title}');
SELECT relation, name, reads_from, dimensions, waiting, stale, advice FROM seedbed.status;
CALL seedbed.work();
SELECT id FROM shoe_embedding ORDER BY embedding <=> (SELECT seedbed.embed('running shoes')) LIMIT 1;
SELECT row FROM seedbed.search('shoe', 'running shoes', 2, '{"price": {"lt": 100}, "stock": [3, 4]}');
UPDATE shoe SET stock = stock + 1;
SELECT waiting FROM seedbed.status;
UPDATE shoe SET title = 'green running shoes' WHERE id = 1;
DELETE FROM shoe WHERE id = 2;
SELECT op, key FROM seedbed_queue.change ORDER BY key;
CALL seedbed.work();
SELECT id FROM shoe_embedding ORDER BY id;
SELECT seedbed.drop_column('shoe');
SELECT count(*) FROM seedbed_queue.subscription;
