#!/usr/bin/env bash
# From nothing to a trained, evaluated CLIP on this machine's CPU: environment, data, training, pictures, a table.
#
#   bash launch/quickstart.sh [--setup-only] [--dry-run] [--help]
#
#   --setup-only   stop after installing
#   --dry-run      print the command lines, run nothing
#   MMCL_VENV      folder of the virtual environment; default: .venv of the clone
#   TFDS_DATA_DIR  folder of the data sets; default: data/ of the clone
#
# Needs python3 (3.11 or newer) with pip and venv, and about 2 GB of disk. Results lie in runs/quickstart/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

setup_only=false dry_run=false
for argument in "$@"; do
  case $argument in
    --setup-only) setup_only=true ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit 0 ;;
    *) die "unknown argument: $argument (see --help)" ;;
  esac
done

$dry_run || environment demo
if $setup_only; then exit 0; fi
export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
run mmcl data build openmoji/color
run mmcl train --config configs/clip_emoji.py --workdir runs/quickstart
