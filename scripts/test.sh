#!/usr/bin/env bash
# Runs the tests; makes the environment first where it is missing. Arguments go to pytest: bash scripts/test.sh -k blind
. "$(dirname "$0")/env.sh" requirements.txt requirements-dev.txt
"$PY" -m ruff check .
exec "$PY" -m pytest -q "$@"
