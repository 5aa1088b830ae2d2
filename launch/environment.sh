# Makes the virtual environment that the scripts of this folder share. Source it, then: environment EXTRA,EXTRA
#
# It lies in .venv of the clone, or where MMCL_VENV says. Packages have the versions of requirements/lock.txt;
# what is installed already is kept, the project itself is installed anew each time, editable.

die() {
  printf '\n%s\n' "$*" >&2
  exit 1
}

environment() {
  local extras=$1
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  local venv=${MMCL_VENV:-$root/.venv}
  command -v python3 > /dev/null || die "Python is missing. On Debian or Ubuntu: sudo apt-get install python3 python3-venv python3-pip"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "Python 3.11 or newer is needed; this is $(python3 --version). On Debian or Ubuntu: sudo apt-get install python3.11 python3.11-venv"
  if [ ! -x "$venv/bin/python" ]; then
    python3 -c 'import venv, ensurepip' 2> /dev/null ||
      die "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv"
    echo "making a virtual environment in $venv"
    mkdir -p "$(dirname "$venv")"
    python3 -m venv "$venv" || die "Could not make a virtual environment in $venv; is there room, and may you write there?"
  fi
  echo "installing packages (quick if they are there)"
  # --no-build-isolation would need setuptools in the environment; with isolation pip fetches it by itself.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/requirements/lock.txt" --editable "$root[$extras]" ||
    die "Installing failed; the lines above say why. Without a network, or behind a proxy, see https_proxy and pip's index-url."
  export PATH="$venv/bin:$PATH"
}
