# The project with everything installed. For a CPU:
#   docker build -t anoseg .
# For CUDA (the host needs NVIDIA's container toolkit):
#   docker build -t anoseg:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#     --build-arg TORCH_INDEX= .
#   docker run --gpus all --shm-size 8g -v "$PWD:/work" anoseg:cuda predict street.jpg --weights w.pth
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# Python comes with the first base and not with NVIDIA's, and fvcore is built from source. Debian
# removes the packages of a version when it has a newer one, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends git make gcc g++ \
 && (command -v python3 >/dev/null || apt-get install -y --no-install-recommends python3-dev python3-venv) \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/anoseg_d2
COPY . .

# The registry's own torch for Linux carries CUDA, which a CPU has no use for.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" PIP_NO_CACHE_DIR=1 make setup

ENV PATH=/opt/anoseg_d2/.venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["anoseg"]
CMD ["--help"]
