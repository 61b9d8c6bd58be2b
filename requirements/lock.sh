#!/usr/bin/env bash
# Resolve the lock files anew.  Needs uv; set UV_FIND_LINKS or UV_INDEX to where torch's CPU build can be found.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { uv pip compile pyproject.toml --quiet --no-annotate --prerelease if-necessary --override "$@"; }
export UV_CUSTOM_COMPILE_COMMAND="make lock"

compile requirements/overrides.txt --extra cpu --extra serve --extra ray --extra bench --extra telemetry --extra agents --extra remote --extra studio --extra dev \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file requirements/cpu.txt
compile requirements/overrides-cuda.txt --extra vllm --extra serve --extra ray --extra bench --extra telemetry --extra agents --extra remote \
    --constraint requirements/constraints-cuda.txt --python-version 3.12 --python-platform x86_64-manylinux_2_31 --output-file requirements/cuda.txt
