# shellcheck shell=bash
# Makes the virtual environment that the scripts of this folder share. Source it, then: environment EXTRA,EXTRA
#
# It lies in .venv of the clone, or where MMCL_VENV says. Packages have the versions of requirements/lock*.txt;
# what is installed already is kept, the project itself is installed editable. Where nothing has changed since, nothing is
# done: machines without a network can use what another one has installed on a shared disk.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment() {
  local extras=$1
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  local venv=${MMCL_VENV:-$root/.venv}
  if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    die "$venv holds something that is not a virtual environment. Name another folder: MMCL_VENV=... bash $0"
  fi
  # Some tools make environments without pip; one that was left half made has none either.
  "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip > /dev/null 2>&1 || true
  if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    local python
    python=$(find_python) || die "Python 3.11 or newer is needed, and was not found as python3 or python3.11 to python3.13.
On Debian or Ubuntu: sudo apt-get install python3.11 python3.11-venv
Where that package does not exist, install Python another way and name it: PYTHON=/path/to/python bash $0"
    "$python" -c 'import venv, ensurepip' 2> /dev/null ||
      die "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install $(basename "$python")-venv"
    echo "making a virtual environment in $venv"
    mkdir -p "$(dirname "$venv")"
    "$python" -m venv --clear "$venv" ||
      die "Could not make a virtual environment in $venv; is there room, and may you write there?"
  fi
  export PATH="$venv/bin:$PATH"
  # Jobs that start together share it: one installs, the others wait and find it done.
  (
    if command -v flock > /dev/null; then flock 9; fi
    install_packages "$root" "$venv" "$extras"
  ) 9> "$venv/.mmcl_lock" || exit 1
}

# Prints the name of a Python that is new enough.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

install_packages() {
  local root=$1 venv=$2 extras=$3 here lock=lock.txt
  # A line for each set of extras that is installed, of this clone as it is.
  local installed="$venv/.mmcl_installed"
  here=$(cat "$root"/setup.cfg "$root"/requirements/*.txt | cksum)
  if grep -qsFx "$extras $here $root" "$installed"; then return; fi
  case $extras in
    *tpu*) lock='lock-tpu.txt' ;;
    *cuda12*) lock='lock-gpu.txt' ;;
  esac
  echo "installing packages (quick if they are there)"
  # --no-build-isolation would need setuptools in the environment; with isolation pip fetches it by itself.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/requirements/$lock" --editable "${root}[$extras]" ||
    die "Installing failed; the lines above say why. Without a network, or behind a proxy, see https_proxy and pip's index-url."
  # What was installed from another clone, or before this one changed, is no longer.
  { grep -F " $here $root" "$installed" 2> /dev/null || true; } > "$installed.new"
  echo "$extras $here $root" >> "$installed.new"
  mv "$installed.new" "$installed"
}
