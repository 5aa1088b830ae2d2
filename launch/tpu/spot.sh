#!/usr/bin/env bash
# Trains on a TPU that may be taken away at any time: asks for one, trains, asks for another one, goes on, until done.
#
#   bash launch/tpu/spot.sh NAME --zone ZONE --type TYPE [OPTIONS] -- ARGUMENTS OF `mmcl train`
#
#   --type TYPE     v4-32, v5litepod-16, v5p-8, v6e-8, ...
#   --attempts N    how often training may be started; default: 20
#   --xla LIST      flags of launch/xla_flags.sh: tpu-v6e say; default: none
#   --keep          leave the TPU there at the end; default: delete it, however training ended
#   --runtime R     system image; default: the one that belongs to the type
#   --wait MINUTES  how long to wait for a TPU each time; default: 720
#   --project P     default: gcloud's
#   --dry-run       print the command lines of one round, call nothing
#   MMCL_POLL       seconds between looks; default: 30
#
# Example: bash launch/tpu/spot.sh mine --zone us-central2-b --type v4-32 -- --config configs/clip.py:B16 \
#            --workdir gs://bucket/mine
#
# The run goes on from its last checkpoint each time: --workdir must be on gs://. Ends with training's exit code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
spot=true
parse "--type --runtime --wait --attempts --keep --xla" "$@"
[ ${#arguments[@]} -gt 0 ] || die "nothing to train: give the arguments of mmcl train behind -- (see --help)"
[ -n "$type" ] || die "--type is missing: v5litepod-16, v4-32, v6e-8 say (see --help)"

passed_on=("${where[@]}")
[ -z "$xla" ] || passed_on+=(--xla "$xla")
if $dry_run; then
  create
  bash launch/tpu/run.sh "$name" "${passed_on[@]}" --dry-run -- "${arguments[@]}"
  $keep || delete
  exit 0
fi

trap 'echo "$name is left as it is, and training on it; delete it: bash launch/tpu/delete.sh $name ${where[*]}" >&2
  exit 130' INT TERM
code=$PREEMPTED
for ((attempt = 1; attempt <= attempts; attempt++)); do
  echo "attempt $attempt of $attempts"
  now=$(retry 3 5 state) || die "gcloud can't tell the state of $name; if it is there it costs money: launch/tpu/delete.sh"
  if gone "$now"; then
    echo "$name is $now; deleting it"
    delete || die "can't delete $name"
    now=NONE
  fi
  if [ "$now" = NONE ]; then create || die "can't ask for $name; the lines above say why"; fi
  code=0
  (wait_until_active) || code=$?
  if [ "$code" -eq 0 ]; then
    bash launch/tpu/run.sh "$name" "${passed_on[@]}" -- "${arguments[@]}" || code=$?
  fi
  [ "$code" -eq "$PREEMPTED" ] || break
  echo "preempted"
done

if $keep; then
  echo "$name stays; delete it: bash launch/tpu/delete.sh $name ${where[*]}"
else
  delete || echo "can't delete $name: do it by hand, it costs money" >&2
fi
exit "$code"
