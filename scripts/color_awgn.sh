#!/usr/bin/env bash
# Colour images, additive white Gaussian noise (paper, Table 2): SIGMA=25 or another level; BLIND=1 or a range, SIGMA="5 55", for one model of many levels.
# Both stages and the test by recipe, FLAVOUR=paper or fast (docs/recipes.md); run it again to continue. Other images: CLEAN=.., DISTILL=.. (sets or folders).
. "$(dirname "$0")/env.sh" requirements.txt
SIGMA=${SIGMA:-25}
if [ "${BLIND:-0}" = 1 ]; then SIGMA="5 55"; fi
case $SIGMA in
    *" "*) ROW=color-awgn-blind RUN=$ROW TESTS="15 25 50" FLAVOUR=${FLAVOUR:-fast} ;;
    *) ROW=color-awgn25 RUN=color-awgn$SIGMA TESTS=$SIGMA FLAVOUR=${FLAVOUR:-paper} ;;
esac
NAME=${NAME:-$RUN-$FLAVOUR}

"$PY" train_dbsn.py --name "$NAME" --recipe $ROW-$FLAVOUR --sigma $SIGMA ${CLEAN:+--clean $CLEAN}
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --recipe $ROW-$FLAVOUR --sigma $SIGMA ${DISTILL:+--clean $DISTILL} \
    ${CLEAN:+--synthetic-noisy $CLEAN}
for level in $TESTS; do
    "$PY" test.py --checkpoint "$NAME" "$NAME-full" --data cbsd68 --mode color --noise awgn --sigma $level --json "checkpoints/$NAME/results-$level.json"
done
