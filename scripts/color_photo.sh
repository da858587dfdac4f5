#!/usr/bin/env bash
# Photographs, whose noise neighbours share: both stages and the test on cc15. FLAVOUR=small (the
# released weights) or fast; NAME=.. of the run. Run it again to continue where it stopped.
[ $# = 0 ] || { echo "error: $0 takes no arguments, but settings such as FLAVOUR=fast bash $0" >&2; exit 2; }
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" requirements.txt
FLAVOUR=${FLAVOUR:-small}
NAME=${NAME:-color-photo-$FLAVOUR} RECIPE=color-photo-$FLAVOUR
"$PY" train_dbsn.py --name "$NAME" --recipe "$RECIPE"
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --recipe "$RECIPE"
"$PY" test.py --checkpoint "$NAME" "$NAME-full" --data cc15 --clean cc15_clean --json "checkpoints/$NAME/results.json"
