#!/usr/bin/env bash
# Runs the tests, one process for each core. It makes the environment first where that is missing.
# SLOW=1 bash scripts/test.sh runs the slow ones too. Arguments go to pytest, such as -k blind.
. "$(dirname "$0")/env.sh" requirements.txt requirements-dev.txt
export OMP_NUM_THREADS=1
"$PY" -m ruff check .
[ -n "${SLOW:-}" ] || [ $# != 0 ] || set -- -m "not slow"
exec "$PY" -m pytest -q -n auto "$@"
