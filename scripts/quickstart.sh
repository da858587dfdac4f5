#!/usr/bin/env bash
# Both stages at a small size on photographs that come with scikit-image: eight to nine minutes on two
# CPU cores with the installation. Gray, AWGN 25, each training image's noise drawn once. Run it again
# to continue where it stopped, or to see the table again. On a slow machine the time limits stop a
# stage early; stage 1 is not trained further once stage 2 has begun to learn from it.
. "$(dirname "$0")/env.sh" requirements.txt

# QUICK=1 shortens the training to seconds: it shows that everything runs, not what the method can
# do.
if [ "${QUICK:-0}" = 1 ]; then
    OUT=quickstart-short STEPS=60 DISTILL=40
else
    OUT=quickstart STEPS=1600 DISTILL=2000
fi
NOISE="--noise awgn --sigma 25"

[ -e checkpoints/$OUT/stage2/options.json ] || "$PY" train_dbsn.py --name $OUT/stage1 --clean skimage_train $NOISE --width 32 --blocks 3 --mdc residual \
    --noise-draw fixed --steps $STEPS --batch-size 8 --patch-size 48 --lr 5e-3 --warmup 100 --max-minutes 3.5
"$PY" train_distill.py --name $OUT/stage2 --teacher $OUT/stage1 --clean skimage_train --synthetic-noisy skimage_train $NOISE \
    --student-width 48 --steps $DISTILL --batch-size 8 --patch-size 64 --lr 2e-3 --warmup 100 --max-minutes 3.5
"$PY" test.py --checkpoint $OUT/stage1 $OUT/stage2 --data skimage_test --mode gray $NOISE \
    --json checkpoints/$OUT/results.json --save checkpoints/$OUT/pictures
# the released weights for any level, on the same photographs with more noise: nobody tells them how
# much
"$PY" test.py --checkpoint gray-awgn-blind gray-awgn-blind-full --data skimage_test --mode gray --noise awgn --sigma 40 --save checkpoints/$OUT/released
echo "pictures: checkpoints/$OUT/pictures/ and checkpoints/$OUT/released/"
