#!/usr/bin/env bash
# Create the environment and install GLUS into it. Safe to repeat; does nothing when nothing is to do.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/setup.sh

Creates the virtual environment VENV (default .venv) and installs GLUS with everything it needs.
Needs Python 3.11 or newer; works without a network when everything is installed already.

environment variables:
  PYTHON           interpreter for a new environment (default: the first python3* on PATH that is 3.11 or newer)
  VENV             environment folder (default: .venv)
  TORCH_INDEX_URL  where torch comes from (default: pip's index). On Linux without a GPU, this saves gigabytes:
                     TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu bash scripts/setup.sh
TEXT
}
case "${1:-}" in
    "") ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
stamp=$venv/.glus-setup

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if is_new_enough "$candidate"; then echo "$candidate" && return; fi
    done
    echo "setup: need Python 3.11 or newer; set PYTHON to one (tried: ${PYTHON:-python3, python3.11 to 3.14})" >&2
    return 1
}

if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    echo "setup: creating $venv with $("$python" --version)"
    "$python" -m venv "$venv" || {
        echo "setup: could not create $venv; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi
python=$venv/bin/python
is_new_enough "$python" || {
    echo "setup: $venv has $("$python" --version 2>&1); need 3.11 or newer. Remove it, or set VENV to another folder" >&2
    exit 1
}

# The stamp holds what the environment was made from; the import test notices a moved checkout or environment.
wanted=$(cat requirements.txt pyproject.toml scripts/setup.sh <("$python" --version) <(pwd) | cksum)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && "$python" -c 'import glus' 2>/dev/null; then
    echo "setup: $venv is up to date"
    exit 0
fi

started=$SECONDS
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
pinned() { grep -E "^$1==" requirements.txt; }

echo "setup: build tools"
pip install --quiet "$(pinned setuptools)" "$(pinned wheel)"
if [[ -n ${TORCH_INDEX_URL:-} ]]; then
    echo "setup: $(pinned torch) from $TORCH_INDEX_URL"
    pip install --quiet --index-url "$TORCH_INDEX_URL" "$(pinned torch)"
else
    command -v nvidia-smi >/dev/null || echo "setup: no NVIDIA GPU found; see --help for a smaller torch"
    echo "setup: $(pinned torch) (may be large)"
    pip install --quiet "$(pinned torch)"
fi
echo "setup: requirements.txt"
pip install --quiet -r requirements.txt
if ! pip show --quiet sam2 2>/dev/null; then
    # --no-build-isolation: an isolated build would download a torch of its own
    echo "setup: sam2==1.1.0, without its optional CUDA kernel"
    SAM2_BUILD_CUDA=0 pip install --quiet --no-deps --no-build-isolation sam2==1.1.0
fi
echo "setup: glus itself, editable"
pip install --quiet --no-deps --no-build-isolation -e .
echo "$wanted" >"$stamp"
echo "setup: done in $((SECONDS - started)) s"
