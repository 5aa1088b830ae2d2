#!/usr/bin/env bash
# Makes the environment and runs the tests.
#
#   bash launch/test.sh [--slow] [--setup-only] [--dry-run] [--help] [arguments of pytest]
#
#   --slow         the tests marked slow too
#   --setup-only   stop after installing
#   --dry-run      print the command line, run nothing
#   MMCL_VENV      folder of the virtual environment; default: .venv of the clone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

setup_only=false dry_run=false
marks=(-m "not slow")
rest=()
for argument in "$@"; do
  case $argument in
    --setup-only) setup_only=true ;;
    --dry-run) dry_run=true ;;
    --slow) marks=() ;;
    --help | -h) usage && exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done

$dry_run || environment audio,demo,gcs,speech,test
if $setup_only; then exit 0; fi
run python -m pytest -n auto --dist worksteal ${marks[@]+"${marks[@]}"} ${rest[@]+"${rest[@]}"}
