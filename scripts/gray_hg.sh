#!/usr/bin/env bash
# Gray images (paper, Table 1). Heteroscedastic (Poisson-Gaussian) noise: ALPHA=40 DELTA=10; BLIND=1
# for one model of the levels 10 to 60, 2 to 20. More settings: scripts/row.sh.
MODE=gray NOISE=hg
. "$(dirname "$0")/row.sh"
