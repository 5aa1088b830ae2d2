#!/usr/bin/env bash
# Brings this clone to all workers of a TPU, starts training on them and waits for its end.
#
#   bash launch/tpu/run.sh NAME --zone ZONE [--project P] [--detach] [--xla LIST] [--dry-run] -- ARGUMENTS OF `mmcl train`
#
#   --detach     start, and don't wait
#   --xla LIST   flags of launch/xla_flags.sh: tpu-v6e say; default: none
#   --dry-run    print the command lines, call nothing
#   MMCL_POLL    seconds between looks; default: 30
#   MMCL_EXTRAS  extras of setup.cfg to install there; default: tpu,gcs
#
# MMCL_EXTRAS, TFDS_DATA_DIR, WANDB_MODE and LIBTPU_INIT_ARGS, where they are set, are set on the workers, too. Secrets are
# not: log in to W&B there.
#
# Example: bash launch/tpu/run.sh mine --zone us-central2-b -- --config configs/clip.py:B16 --workdir gs://bucket/mine
#
# The files that git knows or would take are copied, uncommitted changes included. Training goes on if this script or
# the connection ends; launch/tpu/logs.sh shows what it prints. Ends with training's exit code; 42 also if the TPU was
# taken away: started again on another one, the run goes on from its last checkpoint, if --workdir is on gs://.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/gcloud.sh
source launch/tpu/gcloud.sh
parse "--detach --xla" "$@"
[ ${#arguments[@]} -gt 0 ] || die "nothing to train: give the arguments of mmcl train behind -- (see --help)"
[[ " ${arguments[*]}" == *"--workdir"[\ =]gs://* ]] || echo "warning: --workdir is not on gs://; it goes with the TPU" >&2

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/mmcl_jax.tar.gz
if ! $dry_run; then
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -f "$file" ] || printf '%s\0' "$file" # those deleted since the last commit are listed, too
  done | tar --null -T - -czf "$archive"
fi
export_xla "$xla"
environment=() # what the workers get of this one
for variable in MMCL_EXTRAS TFDS_DATA_DIR WANDB_MODE LIBTPU_INIT_ARGS; do
  [ -z "${!variable:-}" ] || environment+=("$variable=${!variable}")
done
commit=$(git describe --always --abbrev=12 --dirty=+ --exclude='*' 2> /dev/null || true)
there=(env "MMCL_COMMIT=$commit" ${environment[@]+"${environment[@]}"} bash mmcl_jax/launch/tpu/worker.sh)
retry 3 10 tpu scp "$archive" "$name:mmcl_jax.tar.gz" --worker=all || gave_up
retry 3 10 on all bash -c 'mkdir -p mmcl_jax && tar -xzf mmcl_jax.tar.gz -C mmcl_jax' || gave_up
retry 3 10 on all "${there[@]}" install || gave_up
retry 3 10 on all "${there[@]}" start "${arguments[@]}" || gave_up
if $dry_run || $detach; then exit 0; fi

silent=0 told=''
while true; do
  sleep "$poll"
  if said=$(on 0 bash mmcl_jax/launch/tpu/worker.sh status 2>&1); then
    silent=0
    line=$(grep -E '^mmcl: ' <<< "$said" | tail -n 1 || true)
    case $line in
      "mmcl: exited "*)
        code=${line#mmcl: exited }
        said=${code#* } code=${code%% *}
        case $code in
          0 | 2 | "$PREEMPTED") ;;
          *) # killed, or left alone by a worker that was: a TPU that is being taken away goes worker by worker
            sleep "$poll"
            end_if_gone
            ;;
        esac
        echo "training ended with $code: $said"
        exit "$code"
        ;;
      "mmcl: running "*) [ "$line" = "$told" ] || echo "$(date +%T) ${line#mmcl: running }" ;;
      *) die "the worker said: $said" ;;
    esac
    told=$line
  else
    silent=$((silent + 1))
    end_if_gone
    [ "$silent" -lt 10 ] || gave_up # it may be us who are cut off: training goes on
  fi
done
