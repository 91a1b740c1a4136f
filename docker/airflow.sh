#!/bin/sh
# airflow.sh ARGUMENTS…: runs `airflow ARGUMENTS…` with the users that are in the secret, if there is one.
set -eu

users=/run/secrets/airflow_users
if [ -r "$users" ]; then
    # The auth manager opens its file for writing, which a secret cannot be.
    export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE="$AIRFLOW_HOME/users.json"
    umask 077
    cat "$users" > "$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"
fi
exec airflow "$@"
