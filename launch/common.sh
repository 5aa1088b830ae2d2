# shellcheck shell=bash disable=SC2034 # the scripts that source this read what it sets
# What the scripts of this folder share. Source it.

die() {
  printf '\n%s\n' "$*" >&2
  exit 1
}

# Prints the comment at the head of the script that runs: its --help.
usage() {
  local file=$0
  [ -f "$file" ] || file=$OLDPWD/$0 # the scripts begin by going to the clone's root
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { if (!/^#SBATCH/) sub(/^# ?/, ""); print }' "$file"
}

# Runs a command, or prints it as it would be typed if dry_run=true.
run() {
  if ${dry_run:-false}; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# retry TIMES SECONDS COMMAND...: runs a command until it succeeds, TIMES at most, with pauses that double from
# SECONDS on; ends with the last exit code.
retry() {
  local times=$1 pause=$2 code=0 i
  shift 2
  for ((i = 1; i <= times; i++)); do
    code=0
    "$@" || code=$?
    if [ "$code" -eq 0 ] || [ "$i" -eq "$times" ]; then break; fi
    echo "failed with $code, again in $pause s: $*" >&2
    sleep "$pause"
    pause=$((pause * 2))
  done
  return "$code"
}

# number FLAG VALUE: refuses what is not a whole number.
number() {
  [[ $2 =~ ^[0-9]+$ ]] || die "$1 needs a number, not '$2' (see --help)"
}

# value FLAG VALUE: refuses an option without one.
value() {
  [ -n "$2" ] || die "$1 needs a value (see --help)"
}

# split ARGUMENTS...: sets `options` to what stands before --, each --name=value as two words, and `arguments` to the rest.
split() {
  options=() arguments=()
  while [ $# -gt 0 ]; do
    case $1 in
      --)
        shift
        arguments=("$@")
        return
        ;;
      --*=*) options+=("${1%%=*}" "${1#*=}") ;;
      *) options+=("$1") ;;
    esac
    shift
  done
}

# export_xla LIST: exports the flags of a list of xla_flags.sh, and says them; nothing for "".
export_xla() {
  local line
  [ -n "$1" ] || return 0
  line=$(bash launch/xla_flags.sh "$1") || exit 1
  export "${line?}"
  echo "${line%%=*}='${line#*=}'"
}

PREEMPTED=42 # exit code of a run that was told to stop, has saved and goes on when it is started again
