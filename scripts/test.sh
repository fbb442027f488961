#!/usr/bin/env bash
# Lint, types and all tests in the project's environment. Extra arguments go to pytest; its summary is the last line.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
    echo "usage: bash scripts/test.sh [pytest arguments]    VENV, PYTHON: see scripts/setup.sh"
    echo "  TEST_WORKERS  test processes (default: one per core, at most 8)"
    exit 0
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
bin=${VENV:-.venv}/bin
cores=$("$bin/python" -c 'from glus.evaluation.parallel import default_workers as n; print(min(8, n()))')

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
# One thread per test process: several processes with a thread per core each only get in each other's way.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$bin/python" -m pytest -n "${TEST_WORKERS:-$cores}" "$@"
