#!/bin/sh
# with-secrets.sh COMMAND…: runs COMMAND, for which each variable NAME_FILE=/run/secrets/… became NAME with what is in
# that file. For programs that take a secret by the environment alone; it is seen by none but their own account.
set -eu

for name in $(env | sed -n 's|^\([A-Za-z_][A-Za-z0-9_]*\)_FILE=/run/secrets/.*|\1|p'); do
    value=$(cat "$(printenv "${name}_FILE")")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
