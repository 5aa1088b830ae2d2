#!/usr/bin/env bash
# From nothing to a trained, evaluated CLIP on this machine's CPU: environment, data, training, pictures, a table.
#
#   bash launch/quickstart.sh [--setup-only] [--help]
#
#   --setup-only   stop after installing
#   MMCL_VENV      folder of the virtual environment; default: .venv of the clone
#   TFDS_DATA_DIR  folder of the data sets; default: data/ of the clone
#
# Needs python3 (3.11 or newer) with pip and venv, and about 2 GB of disk. Results lie in runs/quickstart/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

setup_only=false
for argument in "$@"; do
  case $argument in
    --setup-only) setup_only=true ;;
    --help | -h) usage && exit 0 ;;
    *) die "unknown argument: $argument (see --help)" ;;
  esac
done

environment demo
if $setup_only; then exit 0; fi
export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
mmcl data build openmoji/color
mmcl train --config configs/clip_emoji.py --workdir runs/quickstart
