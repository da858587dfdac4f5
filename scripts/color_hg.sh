#!/usr/bin/env bash
# Colour images, heteroscedastic (Poisson-Gaussian) noise (paper, Table 2).
# Stage 1, stage 2 and the test with the paper's settings; run it again to continue where it stopped. Other images: CLEAN=.., DISTILL=.. (sets or folders).
. "$(dirname "$0")/env.sh" requirements.txt
ALPHA=${ALPHA:-40} DELTA=${DELTA:-10}
LEVELS="--alpha $ALPHA --delta $DELTA"
NAME=${NAME:-color-hg$ALPHA-$DELTA}

"$PY" train_dbsn.py --name "$NAME" --mode color --noise hg $LEVELS --clean ${CLEAN:-imagenet_val} --noise-draw fresh --mdc release \
    --loss constrained --mu-steps 187500 --sigma-steps 62500 --steps 375000 --batch-size 8 --patch-size 96 --lr 3e-4 --schedule step --lr-decay 0.1
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --clean ${DISTILL:-div2k wed} --synthetic-noisy ${CLEAN:-imagenet_val} --noise hg $LEVELS \
    --noise-draw fresh --steps 200000 --batch-size 32 --patch-size 160 --lr 1e-4 --schedule step --lr-decay 0.5
"$PY" test.py --checkpoint "$NAME" "$NAME-full" --data cbsd68 --mode color --noise hg $LEVELS --json "checkpoints/$NAME/results.json"
