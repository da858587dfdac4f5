# Sourced by the scripts of the tables' rows, which set MODE (gray or color) and NOISE (awgn, hg, mg
# or poisson): both stages and the test, by recipe (docs/recipes.md). FLAVOUR=paper or fast
# (poisson: fast alone), or small for BLIND=1 and mg; BLIND=1, or ranges such as SIGMA="5 20", for
# one model of many levels; NAME=.. of the run; CLEAN=.., DISTILL=.. for other images (sets or
# folders). Run it again to continue where it stopped. A model of BLIND=1 is tested at the paper's
# levels, one of another range at its ends.
BLIND=${BLIND:-0}
[ $# = 0 ] || { echo "error: $0 takes no arguments, but settings such as SIGMA=50 bash $0 (see scripts/row.sh)" >&2; exit 2; }
[ "$BLIND$NOISE" != 1mg ] || { echo "error: BLIND=1 is for awgn, hg and poisson; mg has one covariance" >&2; exit 2; }
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" requirements.txt
case $NOISE in
    awgn)
        [ "$BLIND" = 1 ] && SIGMA="5 55" BLIND_TESTS=("--sigma 15" "--sigma 25" "--sigma 50")
        SIGMA=${SIGMA:-25} RANGES=$SIGMA
        ROW=awgn25 RUN=awgn$SIGMA LEVELS="--sigma $SIGMA" ENDS=("--sigma ${SIGMA% *}" "--sigma ${SIGMA#* }") ;;
    hg)
        [ "$BLIND" = 1 ] && ALPHA="10 60" DELTA="2 20" BLIND_TESTS=("--alpha 40 --delta 10")
        ALPHA=${ALPHA:-40} DELTA=${DELTA:-10} RANGES=$ALPHA$DELTA
        ROW=hg RUN=hg$ALPHA-$DELTA LEVELS="--alpha $ALPHA --delta $DELTA"
        ENDS=("--alpha ${ALPHA% *} --delta ${DELTA% *}" "--alpha ${ALPHA#* } --delta ${DELTA#* }") ;;
    mg)
        SIGMA=${SIGMA:-75} RANGES=
        ROW=mg RUN=mg$SIGMA LEVELS="--sigma $SIGMA" ;;
    poisson)
        [ "$BLIND" = 1 ] && LAM="5 50" BLIND_TESTS=("--lam 30")
        LAM=${LAM:-30} RANGES=$LAM FLAVOUR=${FLAVOUR:-fast}
        ROW=poisson30 RUN=poisson$LAM LEVELS="--lam $LAM" ENDS=("--lam ${LAM% *}" "--lam ${LAM#* }") ;;
esac
case $RANGES in
    *" "*)
        ROW=$NOISE-blind FLAVOUR=${FLAVOUR:-fast}
        if [ "$BLIND" = 1 ]; then RUN=$ROW TESTS=("${BLIND_TESTS[@]}"); else RUN=${RUN// /to} TESTS=("${ENDS[@]}"); fi ;;
    *) FLAVOUR=${FLAVOUR:-paper} TESTS=("$LEVELS") ;;
esac
NAME=${NAME:-$MODE-$RUN-$FLAVOUR} RECIPE=$MODE-$ROW-$FLAVOUR
[ "$MODE" = gray ] && DATA=bsd68 || DATA=cbsd68

"$PY" train_dbsn.py --name "$NAME" --recipe "$RECIPE" $LEVELS ${CLEAN:+--clean $CLEAN}
"$PY" train_distill.py --name "$NAME-full" --teacher "$NAME" --recipe "$RECIPE" $LEVELS ${DISTILL:+--clean $DISTILL} ${CLEAN:+--synthetic-noisy $CLEAN}
for levels in "${TESTS[@]}"; do
    numbers=$(printf '%s' "$levels" | tr -dc '0-9. ')
    "$PY" test.py --checkpoint "$NAME" "$NAME-full" --data $DATA --mode $MODE --noise $NOISE $levels \
        --json "checkpoints/$NAME/results-$(printf '%s\n' $numbers | paste -sd-).json"
done
