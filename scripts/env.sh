# Sourced by the other scripts: goes to the project's folder, makes .venv where it is missing or out
# of date, and sets PY.
#   . scripts/env.sh requirements.txt [more requirement files]
# DBSN_PYTHON=/path/to/python uses that interpreter as it is and installs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -n "${DBSN_PYTHON:-}" ]; then
    PY=$DBSN_PYTHON
else
    current=yes
    for file in "$@"; do cmp -s "$file" ".venv/installed-$file" || current=no; done
    if [ $current = no ]; then
        if [ ! -x .venv/bin/python ]; then
            for python in python3.13 python3.12 python3.11 python3 none; do
                [ $python = none ] && { echo "error: Python 3.11 or newer is needed, and none was found" >&2; exit 1; }
                "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
            done
            "$python" -m venv .venv || { echo "error: cannot make .venv with $python; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
        fi
        echo "installing $* into .venv"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
        # opencv-python links libGL.so.1 and libgthread-2.0.so.0, which a bare machine lacks; the headless build of the same version does without them
        if ! .venv/bin/python -c 'import cv2' 2>/dev/null; then
            .venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
                "$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements.txt)"
        fi
        for file in "$@"; do cp "$file" ".venv/installed-$file"; done
    fi
    PY=.venv/bin/python
fi
