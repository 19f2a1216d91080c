#!/bin/sh
# The stack on this machine: `infra/stack.sh up`; `infra/stack.sh --help` lists the rest. See infra/README.md.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd) || exit
python=${STACK_PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || {
    echo "stack: there is no $python; run \`make setup\` in $root, or set STACK_PYTHON to the Python that has the package" >&2
    exit 2
}
# -P: a folder `infra` in the working folder is not meant.
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m infra.stack "$@"
