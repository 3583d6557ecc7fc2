#!/usr/bin/env bash
# A training by several processes of this machine (CPU, or give each its GPUs yourself):
#
#   scripts/train_local.sh 2 --config=experiments/lung.py [--workdir=DIR] [--config.NAME=VALUE]
#
# Ends with the status of process 0; 75 means: the same command again. Ctrl-C and SIGTERM reach all.
set -uo pipefail
processes=$1
shift
python=${LMREG_PYTHON:-python}
port=${LMREG_PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
set -m # Each in a group of its own: Ctrl-C reaches them once, through the trap. A second time would end them.
started=()
trap 'kill -TERM "${started[@]}" 2> /dev/null' INT TERM
for ((process = 0; process < processes; process++)); do
  "$python" -m experiments.train "$@" \
    --coordinator="127.0.0.1:$port" --processes="$processes" --process="$process" &
  started+=($!)
done
status=0
for ((process = processes - 1; process >= 0; process--)); do
  while :; do
    wait "${started[process]}"
    status=$?
    kill -0 "${started[process]}" 2> /dev/null || break # Else a signal ended the wait, not the process.
  done
done
exit "$status"
