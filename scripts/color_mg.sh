#!/usr/bin/env bash
# Colour images (paper, Table 2). Multivariate noise, its channels correlated: SIGMA=75, its
# greatest standard deviation. More settings: scripts/row.sh.
MODE=color NOISE=mg
. "$(dirname "$0")/row.sh"
