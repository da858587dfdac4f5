#!/usr/bin/env bash
# Denoises a folder of pictures: looks at the noise, trains on them from the released weights,
# denoises, writes a report.
#   bash scripts/denoise_folder.sh NOISY OUT [CLEAN]
# CLEAN: clean pictures of the same kind, if there are any. Run it again to continue where it
# stopped. --help has all flags.
from=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" requirements.txt
project=$PWD
case $PY in /*) ;; */*) PY=$project/$PY ;; esac
cd "$from"  # NOISY, OUT and CLEAN are seen from where the command was given
exec "$PY" "$project/scripts/denoise_folder.py" "$@"
