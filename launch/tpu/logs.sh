#!/usr/bin/env bash
# Shows what training prints on a worker of a TPU, and stays to show what comes.
#
#   bash launch/tpu/logs.sh NAME --zone ZONE [--worker N] [--project P] [--dry-run]
#
#   --worker N  default: 0. Where one fails, the others only tell that it is gone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
parse "--worker" "$@"
on "$worker" bash mmcl_jax/launch/tpu/worker.sh log 100 --follow
