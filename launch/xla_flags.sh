#!/usr/bin/env bash
# Prints a list of flags for the compiler, as NAME=value to be exported. None is used unless asked for; measure first.
#
#   bash launch/xla_flags.sh LIST        with LIST one of
#
#     gpu                overlap collectives with computation (XLA's latency hiding scheduler); NVIDIA's images set it
#     gpu-pipelined      gpu, and all-gathers and all-reduces moved across iterations of loops: try it with mesh.fsdp
#     gpu-deterministic  the same bits in every run, slower
#     tpu-v4             asynchronous all-gathers and permutes; later TPUs have them on by themselves
#     tpu-v6e            more of the vector memory for fusions
#     tpu-slices         several slices: gradients of different sizes are reduced together, and beside other work
#
#   The launchers take it as --xla LIST. By hand: export "$(bash launch/xla_flags.sh gpu)"
#
# What XLA_FLAGS or LIBTPU_INIT_ARGS hold already stays, in front. An unknown flag ends the program at its start: those of
# GPUs are tested against the pinned jaxlib, those of TPUs were against libtpu 0.0.42.1, and are wherever the tests find
# one. A run writes both variables to its environment.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

variable=XLA_FLAGS
case ${1:-} in
  gpu) flags=(--xla_gpu_enable_latency_hiding_scheduler=true) ;;
  gpu-pipelined)
    flags=(--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_pipelined_all_gather=true
      --xla_gpu_enable_pipelined_all_reduce=true)
    ;;
  gpu-deterministic) flags=(--xla_gpu_deterministic_ops=true) ;;
  tpu-v4)
    variable=LIBTPU_INIT_ARGS
    flags=(--xla_enable_async_all_gather=true --xla_enable_async_collective_permute=true)
    ;;
  tpu-v6e)
    variable=LIBTPU_INIT_ARGS
    flags=(--xla_tpu_scoped_vmem_limit_kib=98304)
    ;;
  tpu-slices)
    variable=LIBTPU_INIT_ARGS
    flags=(--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true)
    ;;
  --help | -h) usage && exit 0 ;;
  *) die "which list? gpu, gpu-pipelined, gpu-deterministic, tpu-v4, tpu-v6e or tpu-slices (see --help)" ;;
esac
[ -z "${!variable:-}" ] || flags=("${!variable}" "${flags[@]}")
echo "$variable=${flags[*]}"
