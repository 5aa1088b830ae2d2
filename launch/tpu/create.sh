#!/usr/bin/env bash
# Asks for a TPU as a queued resource, and waits until it is there.
#
#   bash launch/tpu/create.sh NAME --zone ZONE --type TYPE [--spot] [--project P] [--runtime R] [--wait MINUTES] [--dry-run]
#
#   --type TYPE     v4-32, v5litepod-16, v5p-8, v6e-8, ...
#   --runtime R     system image; default: the one that belongs to the type
#   --spot          cheaper, and taken away when others want it; launch/tpu/spot.sh starts anew when that happens
#   --wait MINUTES  how long to wait; default: 720. 0: don't
#   --project P     default: gcloud's
#   --dry-run       print the command lines, call nothing
#   MMCL_POLL       seconds between looks; default: 30
#
# Needs gcloud (logged in) with the TPU API enabled. Ends with 42 if the TPU was refused or taken away while we waited.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
parse "--type --runtime --spot --wait" "$@"

create
if $dry_run || [ "$wait_minutes" -eq 0 ]; then exit 0; fi
wait_until_active
