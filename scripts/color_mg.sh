#!/usr/bin/env bash
# Colour images, multivariate Gaussian noise with correlated channels (paper, Table 2): SIGMA=75, its greatest standard deviation.
# Both stages and the test by recipe, FLAVOUR=paper or fast (docs/recipes.md); run it again to continue. Other images: CLEAN=.., DISTILL=.. (sets or folders).
. "$(dirname "$0")/env.sh" requirements.txt
FLAVOUR=${FLAVOUR:-paper} SIGMA=${SIGMA:-75}
NAME=${NAME:-color-mg$SIGMA-$FLAVOUR}

"$PY" train_dbsn.py --name "$NAME" --recipe color-mg-$FLAVOUR --sigma $SIGMA ${CLEAN:+--clean $CLEAN}
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --recipe color-mg-$FLAVOUR --sigma $SIGMA ${DISTILL:+--clean $DISTILL} \
    ${CLEAN:+--synthetic-noisy $CLEAN}
"$PY" test.py --checkpoint "$NAME" "$NAME-full" --data cbsd68 --mode color --noise mg --sigma $SIGMA --json "checkpoints/$NAME/results.json"
