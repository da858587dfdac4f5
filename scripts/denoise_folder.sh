#!/usr/bin/env bash
# Denoises a folder of pictures: looks at the noise, trains on them from the released weights, denoises, writes a report.
#   bash scripts/denoise_folder.sh NOISY OUT [CLEAN]
# CLEAN: clean pictures of the same kind, if there are any. Run it again to continue where it stopped. --help has all flags.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" requirements.txt
exec "$PY" scripts/denoise_folder.py "$@"
