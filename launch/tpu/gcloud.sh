# shellcheck shell=bash disable=SC2034 # the scripts that source this read what it sets
# What the scripts of this folder share: their common options and the calls of gcloud. Source it from the clone's root.

# shellcheck source=launch/common.sh
source launch/common.sh
poll=${MMCL_POLL:-30} # seconds between looks

name='' zone='' project='' type='' runtime='' wait_minutes=720 spot=false keep=false detach=false dry_run=false
attempts=20 xla='' worker=0

# Reads NAME, options and, behind --, the arguments of mmcl train. Takes the options that the script knows, then "$@".
parse() {
  local known=" $1 --zone --project --dry-run --help -h "
  shift
  split "$@"
  set -- ${options[@]+"${options[@]}"}
  while [ $# -gt 0 ]; do
    case $1 in
      -*) [[ "$known" == *" $1 "* ]] || die "unknown option $1; it takes:$known(see --help). What is for mmcl train comes behind --" ;;
    esac
    case $1 in
      --zone | --project | --type | --runtime | --xla | --worker)
        value "$1" "${2:-}"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --wait | --attempts)
        number "$1" "${2:-}"
        if [ "$1" = --wait ]; then wait_minutes=$2; else attempts=$2; fi
        shift
        ;;
      --spot) spot=true ;;
      --keep) keep=true ;;
      --detach) detach=true ;;
      --dry-run) dry_run=true ;;
      --help | -h) usage && exit 0 ;;
      *)
        [ -z "$name" ] || die "one name, please: $name or $1? What is for mmcl train comes behind --"
        name=$1
        ;;
    esac
    shift
  done
  [ -n "$name" ] || die "which TPU? Give it a name (see --help)"
  [ -n "$zone" ] || die "--zone is missing: us-central2-b say (see --help)"
  where=("--zone=$zone")
  [ -z "$project" ] || where+=("--project=$project")
}

queued() { # queued VERB ARGUMENTS...
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}

tpu() { # tpu VERB ARGUMENTS...
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}"
}

# The state of the queued resource: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, ...; NONE if there is none. Where it is
# ACTIVE its machines may be gone all the same: then theirs, PREEMPTED say.
state() {
  local said node
  if ! said=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>&1); then
    if [[ $said == *NOT_FOUND* || $said == *"not found"* ]]; then
      echo NONE
      return
    fi
    echo "$said" >&2
    return 1
  fi
  if [ "$said" = ACTIVE ]; then
    if ! node=$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)' 2>&1); then
      if [[ $node != *NOT_FOUND* && $node != *"not found"* ]]; then
        echo "$node" >&2
        return 1
      fi
      node=TERMINATED
    fi
    [ "$node" = READY ] || said=$node
  fi
  echo "$said"
}

# gone STATE: whether a TPU in this state has to be deleted and asked for anew.
gone() {
  [[ $1 =~ ^(SUSPENDING|SUSPENDED|FAILED|DELETING|PREEMPTED|TERMINATED|STOPPING|STOPPED|HIDDEN)$ ]]
}

# Waits until the TPU is there. Ends with 42 if it was taken away or could not be had: delete it, ask anew.
wait_until_active() {
  local now before='' deadline=$((SECONDS + 60 * wait_minutes))
  while true; do
    now=$(retry 3 5 state) || die "gcloud can't tell the state of $name"
    [ "$now" = "$before" ] || echo "$(date +%T) $name: $now"
    before=$now
    case $now in
      ACTIVE) return 0 ;;
      NONE) die "there is no $name; create it: bash launch/tpu/create.sh $name ..." ;;
    esac
    if gone "$now"; then return "$PREEMPTED"; fi
    [ "$SECONDS" -lt "$deadline" ] || die "$name is still $now after $wait_minutes minutes (--wait)"
    sleep "$poll"
  done
}

create() {
  local flags=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=${runtime:-$(runtime_of "$type")}")
  [ -n "$type" ] || die "--type is missing: v5litepod-16, v4-32, v6e-8 say (see --help)"
  if $spot; then flags+=(--spot); fi
  retry 3 10 queued create "${flags[@]}"
}

delete() {
  local i
  retry 5 10 queued delete --force --quiet || return
  $dry_run && return
  for ((i = 0; i < 60; i++)); do # its name can't be used while it is being deleted
    [ "$(state)" != NONE ] || return 0
    sleep "$poll"
  done
  return 1
}

# The system image that belongs to a kind of TPU.
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# on WORKER COMMAND ARGUMENTS...: runs a command on the workers (all, or a number), each argument arriving as it is.
on() {
  local worker=$1
  shift
  tpu ssh "$name" "--worker=$worker" "--command=$(printf '%q ' "$@")"
}

# Ends the script, when the workers can't be reached: with 42 if the TPU was taken away.
gave_up() {
  end_if_gone
  die "the workers of $name can't be reached, or refuse; the lines above say why"
}

# Ends the script with 42 if the TPU was taken away. Whether it was may be unknown: then it goes on.
end_if_gone() {
  local now
  now=$(retry 3 5 state) || return 0
  if gone "$now" || [ "$now" = NONE ]; then
    echo "$name is gone: $now"
    exit "$PREEMPTED"
  fi
}
