#!/usr/bin/env bash
# Tells training on a TPU to save and stop, as a preemption would; started again, it goes on.
# End launch/tpu/spot.sh first, if that started it: it would start it again.
#
#   bash launch/tpu/stop.sh NAME --zone ZONE [--project P] [--dry-run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
parse "" "$@"
on all bash mmcl_jax/launch/tpu/worker.sh stop
