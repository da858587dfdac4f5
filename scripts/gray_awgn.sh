#!/usr/bin/env bash
# Gray images (paper, Table 1). Additive white Gaussian noise: SIGMA=25 or another level; BLIND=1
# for one model of the levels 5 to 55. More settings: scripts/row.sh.
MODE=gray NOISE=awgn
. "$(dirname "$0")/row.sh"
