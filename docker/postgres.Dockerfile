# syntax=docker/dockerfile:1
# Postgres 17 with pgvector, PL/Python and the extension `seedbed`:
#   docker build -f docker/postgres.Dockerfile -t seedbed-postgres:0.1.0 .

FROM postgres:17.10-bookworm AS extension
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make postgresql-server-dev-17 python3 \
    && rm -rf /var/lib/apt/lists/*
COPY udf /src/udf
COPY connectors/seedbed/sql/queue.sql /src/connectors/seedbed/sql/
RUN make -C /src/udf install DESTDIR=/stage PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config

FROM postgres:17.10-bookworm
# PL/Python asks for its server's very release: where the repository has gone on, the server goes with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-17-pgvector postgresql-plpython3-17 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=extension /stage/usr/share/postgresql/17/extension/ /usr/share/postgresql/17/extension/
COPY docker/postgres-init.sh /docker-entrypoint-initdb.d/seedbed.sh
# The image's own account `postgres`, so that its entry point never is root.
USER 999:999
# By TCP, on which the server does not listen while the entry point is still preparing it.
HEALTHCHECK --interval=5s --timeout=5s --start-period=2m --retries=5 \
    CMD ["pg_isready", "--quiet", "--host", "127.0.0.1"]
