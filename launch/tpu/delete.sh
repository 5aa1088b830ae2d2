#!/usr/bin/env bash
# Deletes a TPU and its queued resource. What is on its disks goes with it.
#
#   bash launch/tpu/delete.sh NAME --zone ZONE [--project P] [--dry-run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
parse "" "$@"
delete
