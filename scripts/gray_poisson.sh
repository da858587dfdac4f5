#!/usr/bin/env bash
# Gray images (not in the paper). Photon counts: LAM=30 photons in a white pixel, or another number;
# BLIND=1 for one model of 5 to 50. More settings: scripts/row.sh.
MODE=gray NOISE=poisson
. "$(dirname "$0")/row.sh"
