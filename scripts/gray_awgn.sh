#!/usr/bin/env bash
# Gray images, additive white Gaussian noise (paper, Table 1): SIGMA=15, 25 or 50.
# Stage 1, stage 2 and the test with the paper's settings; run it again to continue where it stopped. Other images: CLEAN=.., DISTILL=.. (sets or folders).
. "$(dirname "$0")/env.sh" requirements.txt
SIGMA=${SIGMA:-25}
LEVELS="--sigma $SIGMA"
NAME=${NAME:-gray-awgn$SIGMA}

"$PY" train_dbsn.py --name "$NAME" --mode gray --noise awgn $LEVELS --clean ${CLEAN:-imagenet_val} --noise-draw fresh --mdc release \
    --loss constrained --mu-steps 187500 --sigma-steps 62500 --steps 375000 --batch-size 8 --patch-size 96 --lr 3e-4 --schedule step --lr-decay 0.1
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --clean ${DISTILL:-div2k wed} --synthetic-noisy ${CLEAN:-imagenet_val} --noise awgn $LEVELS \
    --noise-draw fresh --steps 200000 --batch-size 32 --patch-size 160 --lr 1e-4 --schedule step --lr-decay 0.5
"$PY" test.py --checkpoint "$NAME" "$NAME-full" --data bsd68 --mode gray --noise awgn $LEVELS --json "checkpoints/$NAME/results.json"
