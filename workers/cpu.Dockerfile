# A CPU worker, or the scheduler. Build from the repository's root:
#   docker build -f workers/cpu.Dockerfile -t gptflow-worker-cpu .
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/gptflow
ENV PATH=/opt/gptflow/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A build argument, so that the CPU build of torch can be taken from where it is kept.
ARG TORCH_INDEX_URL=
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch==$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY gptflow gptflow
COPY workers workers
COPY plugins plugins
RUN pip install -c constraints.txt '.[runtime]' ./workers ./plugins/customer_service ./plugins/sentiment_monitoring \
    ./plugins/recommendation_scoring ./plugins/code_generation

FROM python:3.12-slim
# The engine builds its kernels for the very processor that it finds itself on.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/gptflow /opt/gptflow
ENV PATH=/opt/gptflow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --system --uid 10001 --home-dir /var/lib/gptflow gptflow \
    && install -d -o gptflow -g gptflow /var/lib/gptflow /var/cache/gptflow
USER gptflow
WORKDIR /var/lib/gptflow
STOPSIGNAL SIGTERM
CMD ["python", "-m", "gptflow_workers.cpu"]
