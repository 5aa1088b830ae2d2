#!/usr/bin/env bash
# Trains on a GKE cluster made with xpk (pip install xpk): one workload of one or several TPU slices, or GPU machines.
#
#   bash launch/gke/xpk.sh NAME --cluster C --image IMAGE --tpu-type TYPE|--device-type TYPE [OPTIONS] -- ARGUMENTS OF `mmcl train`
#
#   NAME               of the workload: small letters, digits, dashes; 40 at most
#   --image IMAGE      made by launch/docker/build.sh and pushed where the cluster can pull it
#   --tpu-type TYPE    v5litepod-16, v6e-16, ...; --device-type for GPUs: h100-80gb-8
#   --slices N         of TPUs; default: 1
#   --nodes N          of GPUs; default: 1
#   --restarts N       how often a preempted workload is started again; default: 20
#   --xla LIST         flags of launch/xla_flags.sh: tpu-v6e say; default: none
#   --project P, --zone Z   default: gcloud's
#   --dry-run          print the command line, call nothing
#
# Example: bash launch/gke/xpk.sh mine --cluster pods --image REGISTRY/mmcl:tpu --tpu-type v5litepod-16 -- \
#            --config configs/clip.py:B16 --workdir gs://bucket/mine
#
# Kubernetes sends SIGTERM before it takes a machine: the run saves and ends with 42, for which xpk starts it again, and it
# goes on from its last checkpoint: --workdir must be on gs://. xpk also starts it again where it was killed (127 to 255);
# errors of the run itself (1, 2) end the workload.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/common.sh
source launch/common.sh

name='' slices='' nodes='' restarts=20 dry_run=false image='' xla=''
flags=()
split "$@"
set -- ${options[@]+"${options[@]}"}
while [ $# -gt 0 ]; do
  case $1 in
    --cluster | --tpu-type | --device-type | --project | --zone)
      value "$1" "${2:-}"
      flags+=("$1=$2")
      shift
      ;;
    --image | --slices | --nodes | --restarts | --xla)
      value "$1" "${2:-}"
      [[ $1 == --image || $1 == --xla ]] || number "$1" "$2"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit 0 ;;
    -*) die "unknown option $1 (see --help). What is for mmcl train comes behind --" ;;
    *) name=$1 ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "the workload needs a name of small letters, digits and dashes, 40 at most"
[[ " ${flags[*]-}" == *" --cluster="* ]] || die "--cluster is missing (see --help)"
[[ " ${flags[*]-}" == *"-type="* ]] || die "--tpu-type or --device-type is missing (see --help)"
[ -n "$image" ] || die "--image is missing: bash launch/docker/build.sh makes one (see --help)"
[ ${#arguments[@]} -gt 0 ] || die "nothing to train: give the arguments of mmcl train behind -- (see --help)"
[[ " ${arguments[*]}" == *"--workdir"[\ =]gs://* ]] || echo "warning: --workdir is not on gs://; it goes with the machines" >&2

[ -z "$slices" ] || flags+=("--num-slices=$slices")
[ -z "$nodes" ] || flags+=("--num-nodes=$nodes")
[ -z "$xla" ] || flags+=("--env=$(bash launch/xla_flags.sh "$xla")")
# One command, not several: only then xpk's wrapper passes SIGTERM on to it.
run xpk workload create "--workload=$name" "${flags[@]}" "--docker-image=$image" \
  "--max-restarts=$restarts" --restart-on-exit-codes=42 --termination-grace-period-seconds=120 \
  "--command=$(printf '%q ' mmcl train "${arguments[@]}")"
