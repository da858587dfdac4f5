#!/usr/bin/env bash
# Colour images, heteroscedastic (Poisson-Gaussian) noise (paper, Table 2): ALPHA=40 DELTA=10; BLIND=1 or ranges, ALPHA="10 60" DELTA="2 20", for one model of many levels.
# Both stages and the test by recipe, FLAVOUR=paper or fast (docs/recipes.md); run it again to continue. Other images: CLEAN=.., DISTILL=.. (sets or folders).
. "$(dirname "$0")/env.sh" requirements.txt
ALPHA=${ALPHA:-40} DELTA=${DELTA:-10}
if [ "${BLIND:-0}" = 1 ]; then ALPHA="10 60" DELTA="2 20"; fi
case $ALPHA$DELTA in
    *" "*) ROW=color-hg-blind RUN=$ROW TEST="--alpha 40 --delta 10" FLAVOUR=${FLAVOUR:-fast} ;;
    *) ROW=color-hg RUN=color-hg$ALPHA-$DELTA TEST="--alpha $ALPHA --delta $DELTA" FLAVOUR=${FLAVOUR:-paper} ;;
esac
NAME=${NAME:-$RUN-$FLAVOUR}

"$PY" train_dbsn.py --name "$NAME" --recipe $ROW-$FLAVOUR --alpha $ALPHA --delta $DELTA ${CLEAN:+--clean $CLEAN}
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --recipe $ROW-$FLAVOUR --alpha $ALPHA --delta $DELTA ${DISTILL:+--clean $DISTILL} \
    ${CLEAN:+--synthetic-noisy $CLEAN}
"$PY" test.py --checkpoint "$NAME" "$NAME-full" --data cbsd68 --mode color --noise hg $TEST --json "checkpoints/$NAME/results.json"
