#!/bin/sh
# Run by the image's entry point, once, in a new data folder: the extension, and the account that pipelines use. Its name is
# not `seedbed`: the extension's schema would be the first of its search_path ("$user"), and take its tables.
set -eu

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set endpoint="${SEEDBED_ENDPOINT:-http://server:8000}" <<'SQL'
\set password `cat "${SHOP_PASSWORD_FILE:-/run/secrets/shop_password}"`
CREATE EXTENSION seedbed CASCADE;
INSERT INTO seedbed.endpoint (name, address) VALUES ('default', :'endpoint');
CREATE ROLE shop LOGIN PASSWORD :'password' IN ROLE seedbed_user;
GRANT CREATE ON DATABASE :"DBNAME" TO shop;
GRANT USAGE, CREATE ON SCHEMA public TO shop;
SQL
