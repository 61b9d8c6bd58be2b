# The endpoint on a CPU.  From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t chancellor:cpu .
#   docker run --ulimit nofile=65535 --stop-timeout=75 -p 127.0.0.1:8000:8000 -e CHANCELLOR_SERVE_API_KEYS=... \
#       -v chancellor:/var/cache/chancellor chancellor:cpu
# It serves the demo's models, or the catalog that is mounted as /home/chancellor/chancellor.toml.
# docker kills 10 s after `docker stop` unless --stop-timeout says otherwise: more than CHANCELLOR_SERVE_DRAIN_DELAY_S (0)
# and CHANCELLOR_SERVE_DRAIN_S (60) together, and 15 s for the engines to end.
# See docs/scaling.md for Kubernetes. For its probes: /health says that the process answers, /ready that an engine does.
# Another port is CHANCELLOR_SERVE_PORT's, where the health check looks as well, and not --port's.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CACHE_DIR=/var/cache/pip
# Where pip finds torch's CPU build; an index of yours that has all packages does for both.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/chancellor
ENV PATH=/opt/chancellor/bin:$PATH
WORKDIR /src
# The lock first: it changes less often than the code. --no-deps: it is complete, and torch before all else, so that
# nothing pulls in the CUDA build.
COPY requirements/ requirements/
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/var/cache/pip \
    torch=$(grep -E '^torch==' requirements/cpu.txt) \
    && { pip install --no-deps "$torch" || pip install --no-deps --index-url "$TORCH_INDEX" "$torch"; } \
    && pip install --no-deps -r requirements/cpu.txt -r requirements/demo.txt
COPY pyproject.toml README.md LICENSE ./
COPY chancellor/ chancellor/
COPY nodes/ nodes/
COPY graphs/ graphs/
RUN pip install --no-deps --no-build-isolation --no-cache-dir .

# hadolint ignore=DL3006
FROM ${PYTHON}
# libnuma1: vLLM's kernels want it. tini: the endpoint would not collect what its engines leave behind. wget: KubeRay's
# probes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home chancellor \
    && install --directory --owner=chancellor --group=chancellor /var/cache/chancellor /var/log/chancellor
COPY --from=build /opt/chancellor /opt/chancellor
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/chancellor-entrypoint
ENV PATH=/opt/chancellor/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CHANCELLOR_CACHE_DIR=/var/cache/chancellor \
    CHANCELLOR_LOG_DIR=/var/log/chancellor \
    HF_HOME=/var/cache/chancellor/huggingface
USER 10001
WORKDIR /home/chancellor
VOLUME /var/cache/chancellor
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('CHANCELLOR_SERVE_PORT', '8000') + '/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "chancellor-entrypoint"]
CMD ["serve", "--host", "0.0.0.0"]
