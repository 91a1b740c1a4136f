#!/bin/sh
# Fills the table of products; rows that are there stay as they are.
set -eu

PGPASSWORD=$(cat /run/secrets/shop_password)
export PGPASSWORD
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --single-transaction --file "$(dirname "$0")/products.sql"
