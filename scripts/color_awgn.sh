#!/usr/bin/env bash
# Colour images (paper, Table 2). Additive white Gaussian noise: SIGMA=25 or another level; BLIND=1
# for one model of the levels 5 to 55. More settings: scripts/row.sh.
MODE=color NOISE=awgn
. "$(dirname "$0")/row.sh"
