#!/usr/bin/env bash
# Runs on each worker of a TPU, called by the other scripts of this folder; ~/mmcl holds the pid, log and exit code.
#
#   bash mmcl_jax/launch/tpu/worker.sh install                          makes the environment
#   bash mmcl_jax/launch/tpu/worker.sh start ARGUMENTS OF `mmcl train`  starts training, unless it is running already
#   bash mmcl_jax/launch/tpu/worker.sh status                           "mmcl: running LAST LINE" or "mmcl: exited CODE LAST LINE"
#   bash mmcl_jax/launch/tpu/worker.sh stop                             tells it to save and stop
#   bash mmcl_jax/launch/tpu/worker.sh log LINES [--follow]             what it prints
#
#   --dry-run      after the verb: print what would be started
#   MMCL_EXTRAS    extras of setup.cfg to install; default: tpu,gcs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
kept=$HOME/mmcl

running() {
  # After a reboot the pid may be another's.
  [ -f "$kept/pid" ] && [ ! -f "$kept/exit" ] && [[ $(ps -o args= -p "$(cat "$kept/pid")" 2> /dev/null) == *mmcl* ]]
}

install() {
  local python apt=(sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  # The images of TPU machines have Python 3.10.
  if ! python=$(find_python) || ! "$python" -c 'import venv, ensurepip' 2> /dev/null; then
    retry 3 20 run "${apt[@]}" update
    retry 3 20 run "${apt[@]}" install -y python3.11 python3.11-venv
  fi
  run environment "${MMCL_EXTRAS:-tpu,gcs}"
}

last_line() {
  tail -n 1 "$kept/log" 2> /dev/null || true
}

verb=${1:-}
[ $# -eq 0 ] || shift
dry_run=false
if [ "${1:-}" = --dry-run ]; then dry_run=true && shift; fi
case $verb in
  install) install ;;
  start)
    if $dry_run; then
      run mmcl train "$@"
    elif running; then
      [ "$(cat "$kept/arguments")" = "$(printf '%q ' "$@")" ] || die "another run is under way here: launch/tpu/stop.sh first"
      echo "mmcl: running $(last_line)"
    else
      environment "${MMCL_EXTRAS:-tpu,gcs}"
      mkdir -p "$kept"
      rm -f "$kept/exit"
      printf '%q ' "$@" > "$kept/arguments"
      # A session of its own: it goes on when the connection ends. The trap lets it outlive the signal that `stop` sends
      # to all of them, and write down how training ended.
      # shellcheck disable=SC2016
      setsid nohup bash -c 'trap : TERM
        code=0
        mmcl train "$@" || code=$?
        echo "$code" > "$HOME/mmcl/exit"' mmcl "$@" > "$kept/log" 2>&1 < /dev/null &
      echo $! > "$kept/pid"
      echo "mmcl: running"
    fi
    ;;
  status)
    if running; then
      echo "mmcl: running $(last_line)"
    elif [ -f "$kept/pid" ]; then
      echo "mmcl: exited $(cat "$kept/exit" 2> /dev/null || echo 137) $(last_line)" # no code: it was killed
    else
      die "mmcl: nothing was started here"
    fi
    ;;
  stop) if running; then run kill -TERM -- "-$(cat "$kept/pid")"; fi ;;
  log) run tail -n "${1:-100}" ${2:+-F} "$kept/log" ;;
  --help | -h) usage ;;
  *) die "install, start, status, stop or log? (see --help)" ;;
esac
