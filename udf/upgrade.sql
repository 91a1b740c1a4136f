\echo Use "ALTER EXTENSION seedbed UPDATE" to load this file. \quit

ALTER TABLE seedbed.endpoint DROP CONSTRAINT endpoint_address_check;
ALTER TABLE seedbed.endpoint ADD CONSTRAINT endpoint_address_check
    CHECK (address ~ '^(unix:/.+|https?://([^][/@:?# ]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/?)$');
ALTER TABLE seedbed.endpoint ADD COLUMN ca text CONSTRAINT endpoint_ca_check CHECK (ca ~ '^/');

