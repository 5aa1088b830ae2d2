#!/usr/bin/env bash
# Trains on this machine with several processes, as a pod or a cluster does with several machines.
#
#   bash launch/local.sh [--processes N] [--devices M] [--relaunch N] [--xla LIST] [--dry-run] ARGUMENTS OF `mmcl train`
#   bash launch/local.sh --setup-only     makes the environment, and stops
#
#   --processes N  how many; default: 1
#   --devices M    virtual CPU devices a process; default: one of the machine's GPUs each, all of them for one process
#   --relaunch N   how often a run that ends as preempted (exit code 42) is started again; default: 3
#   --xla LIST     flags of launch/xla_flags.sh: gpu say; default: none
#   --dry-run      print the command lines, start nothing
#   MMCL_VENV      folder of the virtual environment; default: .venv of the clone
#   MMCL_EXTRAS    extras of setup.cfg to install, cuda12 on a machine with GPUs say; default: demo
#
# Example: bash launch/local.sh --processes 2 --devices 4 --config configs/clip_emoji.py:tiny --workdir runs/two
#
# Ends with the first exit code that is not 0, and then stops the others. SIGTERM and Ctrl-C reach all processes: they
# save and end with 42, and are not started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

processes=1 devices='' relaunch=3 xla='' dry_run=false
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --processes | --devices | --relaunch)
      [[ ${2:-} =~ ^(0|[1-9][0-9]*)$ ]] || die "$1 needs a number"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --xla)
      value "$1" "${2:-}"
      xla=$2
      shift
      ;;
    --dry-run) dry_run=true ;;
    --setup-only) environment "${MMCL_EXTRAS:-demo}" && exit 0 ;;
    --help | -h) usage && exit 0 ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 403)) || die "bash 4.3 or newer is needed; this is $BASH_VERSION"
((processes > 0)) && [ "$devices" != 0 ] || die "--processes and --devices must be positive"
[ ${#arguments[@]} -gt 0 ] || die "nothing to train: give the arguments of mmcl train (see --help)"

export_xla "$xla"
if [ -n "$devices" ]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi
$dry_run || environment "${MMCL_EXTRAS:-demo}"

children=() told=false
# The signal goes on to all of them: they save at the same step and exit with 42.
trap 'told=true; kill -TERM ${children[@]+"${children[@]}"} 2> /dev/null || true' TERM INT

start() {
  local port=0 i command own
  if [ "$processes" -gt 1 ] && ! $dry_run; then
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  fi
  children=()
  for ((i = 0; i < processes; i++)); do
    command=(mmcl train "${arguments[@]}")
    if [ "$processes" -gt 1 ]; then
      command+=(--coordinator "127.0.0.1:$port" --processes "$processes" --process "$i")
    fi
    own=() # environment of this process alone
    if [ "$processes" -gt 1 ] && [ -z "$devices" ]; then own=("JAX_LOCAL_DEVICE_IDS=$i"); fi
    if $dry_run; then
      [ -z "$devices" ] || printf 'JAX_PLATFORMS=%q XLA_FLAGS=%q ' "$JAX_PLATFORMS" "$XLA_FLAGS"
      [ -z "${own[*]-}" ] || printf '%s ' "${own[@]}"
      run "${command[@]}"
    else
      env ${own[@]+"${own[@]}"} "${command[@]}" &
      children+=($!)
    fi
  done
}

# Waits for all children; exit_code becomes the first of theirs that is not 0.
finish() {
  local running=${#children[@]} alive code child
  exit_code=0
  while [ "$running" -gt 0 ]; do
    code=0
    wait -n || code=$?
    # A signal ends `wait` too; those that still run are waited for again.
    alive=0
    for child in "${children[@]}"; do
      if kill -0 "$child" 2> /dev/null; then alive=$((alive + 1)); fi
    done
    if [ "$code" -ne 0 ] && [ "$alive" -lt "$running" ] && [ "$exit_code" -eq 0 ]; then
      exit_code=$code
      # 42 and 130 are stops that all processes agree on. After any other failure the rest would wait for the one that
      # is gone, and take SIGTERM for a wish to stop together.
      if [ "$code" -ne "$PREEMPTED" ] && [ "$code" -ne 130 ]; then
        sleep 3
        kill -KILL "${children[@]}" 2> /dev/null || true
      fi
    fi
    running=$alive
  done
  for child in "${children[@]}"; do # those that ended while another was looked at
    code=0
    wait "$child" 2> /dev/null || code=$?
    if [ "$code" -ne 0 ] && [ "$code" -ne 127 ] && [ "$exit_code" -eq 0 ]; then exit_code=$code; fi
  done
}

for ((attempt = 0; attempt <= relaunch; attempt++)); do
  start
  if $dry_run; then exit 0; fi
  if $told; then kill -TERM "${children[@]}" 2> /dev/null || true; fi # told while they were being started
  finish
  if [ "$exit_code" -ne "$PREEMPTED" ] || $told || [ "$attempt" -eq "$relaunch" ]; then break; fi
  echo "preempted; starting again ($((attempt + 1)) of $relaunch)"
done
exit "$exit_code"
