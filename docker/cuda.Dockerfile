# The endpoint on NVIDIA GPUs; CUDA's libraries come with the wheels, the driver (580 or newer) from the host.
#   docker build -f docker/cuda.Dockerfile -t chancellor:cuda .
#   docker run --gpus all --shm-size=1g --ulimit nofile=65535 --stop-timeout=75 -p 127.0.0.1:8000:8000 -e CHANCELLOR_SERVE_API_KEYS=... \
#       -v chancellor:/var/cache/chancellor -v ./chancellor.toml:/home/chancellor/chancellor.toml:ro chancellor:cuda
# docker kills 10 s after `docker stop` unless --stop-timeout says otherwise: more than CHANCELLOR_SERVE_DRAIN_DELAY_S (0)
# and CHANCELLOR_SERVE_DRAIN_S (60) together, and 15 s for the engines to end.
# See docs/scaling.md for Kubernetes. For its probes: /health says that the process answers, /ready that an engine does.
# Another port is CHANCELLOR_SERVE_PORT's, where the health check looks as well, and not --port's.
# 3.12 or 3.13: requirements/cuda.txt does not fit 3.11.
ARG PYTHON=docker.io/library/python:3.12-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CACHE_DIR=/var/cache/pip
RUN python3 -m venv /opt/chancellor
ENV PATH=/opt/chancellor/bin:$PATH
WORKDIR /src
# The lock first: it changes less often than the code. --no-deps: it is complete.
COPY requirements/ requirements/
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --no-deps -r requirements/cuda.txt -r requirements/demo.txt
COPY pyproject.toml README.md LICENSE ./
COPY chancellor/ chancellor/
COPY nodes/ nodes/
COPY graphs/ graphs/
RUN pip install --no-deps --no-build-isolation --no-cache-dir .

# hadolint ignore=DL3006
FROM ${PYTHON}
# g++: Triton compiles its launchers where it runs, with Python's headers, which this base image has. No nvcc is on the
# PATH: vLLM then leaves FlashInfer's kernels and DeepGEMM alone.
# tini: the endpoint would not collect what its engines leave behind. wget: KubeRay's probes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home chancellor \
    && install --directory --owner=chancellor --group=chancellor /var/cache/chancellor /var/log/chancellor
COPY --from=build /opt/chancellor /opt/chancellor
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/chancellor-entrypoint
ENV PATH=/opt/chancellor/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CHANCELLOR_CACHE_DIR=/var/cache/chancellor \
    CHANCELLOR_LOG_DIR=/var/log/chancellor \
    HF_HOME=/var/cache/chancellor/huggingface \
    VLLM_CACHE_ROOT=/var/cache/chancellor/vllm
USER 10001
WORKDIR /home/chancellor
VOLUME /var/cache/chancellor
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('CHANCELLOR_SERVE_PORT', '8000') + '/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "chancellor-entrypoint"]
CMD ["serve", "--host", "0.0.0.0"]
