# Sourced by the launchers: `root` is the repository, `python` the interpreter of its environment (VENV).
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-.venv}
if [[ $venv != /* ]]; then venv=$root/$venv; fi
python=$venv/bin/python
if [[ ! -x $python ]]; then
    echo "error: no environment at $venv; run bash scripts/setup.sh, or set VENV" >&2
    exit 2
fi
