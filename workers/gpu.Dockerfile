# A worker for one NVIDIA GPU. Build from the repository's root:
#   docker build -f workers/gpu.Dockerfile -t gptflow-worker-gpu .
# torch's own wheels bring the CUDA libraries; the host provides the driver.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/gptflow
ENV PATH=/opt/gptflow/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN pip install "torch==$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY gptflow gptflow
COPY workers workers
COPY plugins plugins
RUN pip install -c constraints.txt '.[runtime]' ./workers ./plugins/customer_service ./plugins/sentiment_monitoring \
    ./plugins/recommendation_scoring ./plugins/code_generation

FROM python:3.12-slim
COPY --from=build /opt/gptflow /opt/gptflow
ENV PATH=/opt/gptflow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --system --uid 10001 --home-dir /var/lib/gptflow gptflow \
    && install -d -o gptflow -g gptflow /var/lib/gptflow /var/cache/gptflow
USER gptflow
WORKDIR /var/lib/gptflow
STOPSIGNAL SIGTERM
CMD ["python", "-m", "gptflow_workers.gpu"]
