#!/usr/bin/env bash
# Takes the numbers of the README's performance section on this machine; a quarter of an hour on two CPU cores.
#
#   bash launch/bench.sh [FOLDER] [--dry-run] [--help]
#
#   FOLDER         where the rows go, one JSON object a line; default: results/bench
#   --dry-run      print the command lines, run nothing
#   MMCL_VENV      folder of the virtual environment; default: .venv of the clone
#   TFDS_DATA_DIR  folder of the data sets; default: data/ of the clone
#
# Let nothing else run meanwhile. Nothing of the size of the large batches is computed: their memory is the compiler's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

out=results/bench dry_run=false
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit 0 ;;
    --*) die "unknown argument: $argument (see --help)" ;;
    *) out=$argument ;;
  esac
done

$dry_run || environment demo
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
$dry_run || mkdir -p "$out"
run mmcl data build openmoji/color

take() { # take NAME COMMAND...: its rows go to NAME.jsonl
  local rows=$out/$1.jsonl
  shift
  if $dry_run; then run "$@"; else "$@" > "$rows"; fi
}

echo "losses"
take loss mmcl bench loss --devices 8 --batch 65536 --dim 512 --json --pin
take loss_sigmoid mmcl bench loss --loss sigmoid --devices 8 --batch 65536 --dim 512 --json --pin
take loss_filip mmcl bench loss --loss filip --devices 8 --batch 1024 --dim 256 --tokens 49,32 --chunk 16 --time_batch 64 --json --pin
take loss_largest mmcl bench loss --devices 8 --dim 512 --largest 2048 --json --pin --plot "$out/memory.png"

echo "the train step: ViT 384 x 6 at 96 pixels, text 256 x 4"
image="decode || normalize('clip')"
take step mmcl bench step --pin --compile --json --config configs/clip.py:S --config.batch=16 --config.dtype=float32 \
  --config.data.train.source=synthetic --config.data.train.image_size=96 --config.evals={} \
  --config.data.streams.image="$image" --config.data.streams.text="captions: pick|tokenize(32)" \
  --config.data.eval_streams.image="$image" --config.data.eval_streams.text="captions: first|tokenize(32)" \
  --config.data.threads=1 --config.data.workers=0 --config.encoders.image.depth=6 --config.encoders.text.depth=4 \
  --config.encoders.text.width=256 --config.encoders.text.heads=4 --config.encoders.text.vocab=8192 \
  --config.encoders.image.remat=none --config.encoders.image.scan=false \
  --config.encoders.text.remat=none --config.encoders.text.scan=false

echo "encoding in chunks, whole and shared weights"
for how in "chunks=1" "chunks=8" "chunks=1 mesh.fsdp=8" "chunks=8 mesh.fsdp=8"; do
  flags=()
  for key in $how; do flags+=("--config.$key"); done
  run mmcl bench step --devices 8 --rounds 2 --json --config configs/clip_emoji.py --config.batch=1024 "${flags[@]}"
done > "$($dry_run && echo /dev/stdout || echo "$out/step_chunks.jsonl")"

echo "input and evaluations"
take data mmcl bench data --json --config configs/clip_emoji.py
take data_no_cache mmcl bench data --json --config configs/clip_emoji.py --config.data.cache_mib=0
take eval mmcl bench eval --json --config configs/clip_emoji.py
echo "written to $out/"
