#!/usr/bin/env bash
# Shows what training prints on the first worker of a TPU, and stays to show what comes.
#
#   bash launch/tpu/logs.sh NAME --zone ZONE [--project P] [--dry-run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
parse "" "$@"
on 0 bash mmcl_jax/launch/tpu/worker.sh log 100 --follow
