# softswap: docker build -t softswap . && docker run -e SOFTSWAP_API_KEYS=... -p 8000:8000 softswap
#
# The package registry's own torch runs on CUDA (docker run --gpus all) and on a CPU. For a smaller image, or another CUDA, name
# the index of that build, as PyTorch's installation page gives it: --build-arg TORCH_INDEX_URL=... (docs/gpu.md)
# The container listens on every address, so it starts only with an API key, or with SOFTSWAP_INSECURE=true behind a proxy
# that asks for one. To keep tasks: -v tasks:/tasks -e SOFTSWAP_REGISTRY=/tasks.
# Models that are fetched are kept in /cache: -v models:/cache.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX_URL=
WORKDIR /src
RUN python -m venv /opt/softswap \
 && /opt/softswap/bin/pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch>=2.11,<2.14"
COPY pyproject.toml README.md LICENSE ./
COPY prompts ./prompts
COPY app ./app
RUN /opt/softswap/bin/pip install --no-cache-dir .

FROM python:${PYTHON}-slim
# with a C compiler the server compiles its attention for the CPU it starts on
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home softswap \
 && install --directory --owner softswap /cache /tasks
COPY --from=build /opt/softswap /opt/softswap
ENV PATH="/opt/softswap/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache \
    SOFTSWAP_CACHE=/cache/softswap \
    SOFTSWAP_HOST=0.0.0.0 \
    SOFTSWAP_PORT=8000
USER softswap
WORKDIR /home/softswap
VOLUME ["/cache", "/tasks"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"SOFTSWAP_PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["softswap"]
CMD ["serve"]
