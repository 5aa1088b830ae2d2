#!/usr/bin/env bash
# Builds an image with this clone installed, for GPUs or TPUs.
#
#   bash launch/docker/build.sh gpu|tpu [--image NAME] [--extras E] [--push] [--dry-run]
#
#   --image NAME  REGISTRY/NAME:TAG; default: mmcl:gpu or mmcl:tpu
#   --extras E    of setup.cfg; default: cuda12,gcs or tpu,gcs. wandb and tensorboard, say, come with commas
#   --push        push it afterwards
#   --dry-run     print the command lines, call nothing
#
# Then, on a machine with NVIDIA's container toolkit:
#   docker run --rm --gpus all --shm-size=8g -v "$PWD/data:/data" -v "$PWD/runs:/runs" -e TFDS_DATA_DIR=/data mmcl:gpu \
#     train --config configs/clip_emoji.py --workdir /runs/clip
#
# The image runs as user 1000, without root; folders that it writes to must be that user's. It holds no data and no secrets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/common.sh
source launch/common.sh

kind='' image='' extras='' push=false dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    gpu | tpu) kind=$1 ;;
    --image | --extras)
      value "$1" "${2:-}"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --push) push=true ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit 0 ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
  shift
done
[ -n "$kind" ] || die "gpu or tpu? (see --help)"
image=${image:-mmcl:$kind}
if [ "$kind" = tpu ]; then extras=${extras:-tpu,gcs}; else extras=${extras:-cuda12,gcs}; fi

commit=$(git describe --always --abbrev=12 --dirty=+ --exclude='*' 2> /dev/null || true)
run docker build --file launch/docker/Dockerfile --build-arg "KIND=$kind" --build-arg "EXTRAS=$extras" \
  --build-arg "COMMIT=$commit" --tag "$image" .
if $push; then retry 3 10 run docker push "$image"; fi
