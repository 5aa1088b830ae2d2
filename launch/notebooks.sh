#!/usr/bin/env bash
# Executes notebooks: from notebooks/NAME.py, the script that is edited, to notebooks/NAME.ipynb with its outputs.
#
#   bash launch/notebooks.sh [--dry-run] [--help] [NAME...]
#
#   NAME           01_first_run, say; default: all. They train what they need, once: some minutes each on a CPU core,
#                  the sweep of 04_ablation_table an hour and a quarter; codebook needs a run, and says which
#   --dry-run      print the command lines, run nothing
#   MMCL_VENV      folder of the virtual environment; default: .venv of the clone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

dry_run=false names=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit 0 ;;
    -*) die "unknown argument $argument (see --help)" ;;
    *)
      [ -f "notebooks/$argument.py" ] || die "there is no notebooks/$argument.py; there are: $(cd notebooks && echo ./*.py)"
      names+=("$argument")
      ;;
  esac
done
if [ ${#names[@]} -eq 0 ]; then
  for script in notebooks/*.py; do names+=("$(basename "$script" .py)"); done
fi

$dry_run || environment audio,demo,notebooks,speech
for name in "${names[@]}"; do
  run python launch/execute.py "notebooks/$name.py" "notebooks/$name.ipynb"
done
