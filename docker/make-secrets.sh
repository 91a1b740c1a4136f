#!/bin/sh
# Makes the secrets that compose.yaml names, in docker/secrets. What is there stays as it is.
#
# A container reads a secret by another account than the one that made it, and compose hands files over with the mode that
# they have. So it is the folder that keeps others out: 0700, with files that all may read.
set -eu

cd "$(dirname "$0")"
umask 077
mkdir -p secrets
chmod 700 secrets

random() { od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'; }

# put NAME TEXT
put() {
    [ -e "secrets/$1" ] && return
    printf '%s' "$2" > "secrets/.$1"
    chmod 644 "secrets/.$1"
    mv "secrets/.$1" "secrets/$1"
    echo "made docker/secrets/$1"
}

for name in postgres_password shop_password qdrant_api_key milvus_password minio_password airflow_db_password; do
    put "$name" "$(random 24)"
done
# Hexadecimal digits, so that they stand in URLs as they are.
put airflow_database_url "postgresql+psycopg://airflow:$(cat secrets/airflow_db_password)@airflow-db/airflow"
put airflow_fernet_key "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')"
put airflow_jwt_secret "$(random 64)"
put airflow_secret_key "$(random 32)"
put airflow_users "{\"admin\": \"$(random 12)\"}"
# Empty until you have one: only `ark:` models need it.
put ark_api_key ""
