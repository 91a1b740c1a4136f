-- Thin bodies: the logic is in Python files, read from one fixed place, which is filled in when installed.
\echo Use "CREATE EXTENSION seedbed" to load this file. \quit

-- Whoever owns the schema may put functions of his own into it, beside those that others will trust.
DO $$ BEGIN
    IF NOT (SELECT r.rolsuper FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
            WHERE n.nspname = 'seedbed') THEN
        RAISE EXCEPTION 'the schema seedbed belongs to an account that is no superuser'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'ALTER SCHEMA seedbed OWNER TO CURRENT_USER';
    END IF;
END $$;
REVOKE ALL ON SCHEMA seedbed FROM PUBLIC;

DO $$ BEGIN
    CREATE ROLE seedbed_user NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

-- Only a row's name may come from a setting: any role may SET a custom one, so it must never hold an address.
CREATE TABLE seedbed.endpoint (
    name text PRIMARY KEY,
    address text NOT NULL CONSTRAINT endpoint_address_check
        CHECK (address ~ '^(unix:/.+|https?://([^][/@:?# ]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/?)$'),
    ca text CONSTRAINT endpoint_ca_check CHECK (ca ~ '^/')
);
SELECT pg_catalog.pg_extension_config_dump('seedbed.endpoint', '');

-- byteacat joins two values' bytes: that is a vector where, and only where, the first is a whole vector's image
-- (int16 dimensions, int16 zero, so many float4), or its head. A short one would be read past its end, so nobody may
-- call this but the functions below, which make that image from a length that was checked.
CREATE FUNCTION seedbed._as_vector(bytea, bytea) RETURNS vector
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteacat';

