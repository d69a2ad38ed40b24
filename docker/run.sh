#!/usr/bin/env bash
# Start the image on the checkout's data:  docker/run.sh [DATA_FOLDER] [COMMAND ...]
#   docker/run.sh                               a shell, with ./data
#   docker/run.sh /datasets make demo           that folder as data/, results in ./runs
# IMAGE=name chooses another image. A GPU is passed on if this machine has one.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
data="$here/data"
if [ $# -gt 0 ] && [ -d "$1" ]; then
    data="$(cd "$1" && pwd)"
    shift
elif [ $# -gt 0 ] && [[ "$1" == */* ]]; then
    echo "run.sh: data folder $1 does not exist" >&2
    exit 2
fi
[ $# -gt 0 ] || set -- bash

mkdir -p "$here/runs" "$here/pretrained"
work=/home/distill3d/Distill3D
options=(--rm --shm-size=8g
    -v "$data:$work/data" -v "$here/pretrained:$work/pretrained" -v "$here/runs:$work/runs")
if [ -t 0 ]; then options+=(-it); fi
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then options+=(--gpus all); fi

exec docker run "${options[@]}" "${IMAGE:-distill3d}" "$@"
