# syntax=docker/dockerfile:1
# Airflow 3.3.2 with Seedbed's provider and DAG files:
#   docker build -f docker/airflow.Dockerfile -t seedbed-airflow:0.1.0 .
# Upon Python and not upon apache/airflow: that image holds its own choice of versions and some eighty providers, while
# constraints/py311.txt is the one set of versions that is tested with Seedbed, Airflow's among them.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY constraints/py311.txt constraints/
RUN pip install --no-cache-dir --constraint constraints/py311.txt build hatchling
COPY pyproject.toml README.md LICENSE ./
COPY connectors connectors
COPY udf udf
RUN python -m build --wheel --no-isolation --outdir /wheels

FROM python:3.11-slim-bookworm AS venv
WORKDIR /src
COPY constraints/py311.txt constraints/
RUN python -m venv /opt/seedbed
ENV PATH=/opt/seedbed/bin:$PATH
# No torch: tasks ask an embedding server, so that a worker needs no model.
ARG EXTRAS=airflow,pgvector,table,s3,qdrant,milvus,ark,media
COPY --from=wheel /wheels /wheels
RUN set -- /wheels/seedbed-*.whl && pip install --no-cache-dir --constraint constraints/py311.txt "$1[$EXTRAS]"

FROM python:3.11-slim-bookworm
# The account is that of seedbed.Dockerfile: both write the volume of caches.
RUN groupadd --gid 10001 seedbed \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/airflow --shell /usr/sbin/nologin seedbed \
    && install --directory --owner 10001 --group 10001 --mode 0750 \
        /var/lib/airflow /var/log/airflow /var/lib/seedbed /var/lib/seedbed/tmp
COPY --from=venv /opt/seedbed /opt/seedbed
COPY docker/airflow.sh docker/health.py /opt/seedbed/
COPY dags /opt/seedbed/dags
ENV PATH=/opt/seedbed/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/var/lib/seedbed/tmp \
    HOME=/var/lib/airflow \
    AIRFLOW_HOME=/var/lib/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/seedbed/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    AIRFLOW__LOGGING__BASE_LOG_FOLDER=/var/log/airflow
WORKDIR /var/lib/airflow
USER 10001:10001
EXPOSE 8080
# Of the API server; compose.yaml names another component for each other container.
HEALTHCHECK --interval=15s --timeout=10s --start-period=2m --retries=4 \
    CMD ["python", "/opt/seedbed/health.py", "http://127.0.0.1:8080/api/v2/monitor/health", "metadatabase"]
ENTRYPOINT ["sh", "/opt/seedbed/airflow.sh"]
CMD ["api-server"]
