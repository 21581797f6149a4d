#!/bin/bash
# One sweep as a Slurm job: Ray's head and workers on the job's nodes, the sweep, and nothing left when it ends.
#
#   mi-ray cluster check cluster/slurm.sh
#   sbatch cluster/slurm.sh sweeps/fig3b.yaml results            # from the project's folder, which all nodes mount
#   mi-ray status results                                        # from the login node, also while it runs
#
# Ends with the exit code of `mi-ray sweep`, so Slurm says FAILED when a cell is missing. Submit it again to go on after a time
# limit or a preemption: what is stored is not computed twice. Change the places marked <- .
#SBATCH --job-name=mi-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=mi-ray-%j.out
##SBATCH --account=YOUR_ACCOUNT --partition=YOUR_PARTITION       # <- what your site asks for; take one # away
set -euo pipefail
umask 077                                      # whatever is written below is for this user alone
sweep=${1:?the sweep file} store=${2:?the store: a folder that all nodes mount, or a URI}
shift 2                                        # what follows goes to `mi-ray sweep`, such as --smoke
cd "${SLURM_SUBMIT_DIR:?run by sbatch}"
PATH=$PWD/.venv/bin:$PATH                      # <- as `make .venv/installed-cluster` made it, on a file system that all nodes mount

# Other users of these nodes can reach Ray's ports, so it wants a token. A fresh one for this job, in the environment of its
# processes and in no file: it ends with the job.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export PATH RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:?}")
head=${nodes[0]}
on() { srun --overlap --ntasks-per-node=1 --kill-on-bad-exit=0 "$@"; }
step() { exec srun --overlap --ntasks-per-node=1 --kill-on-bad-exit=0 "$@"; }   # in the background: $! is srun's own number
# The head's address as the other nodes know it (IPv4), and ports of this job's own: two jobs may share a node.
address=$(on --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | tr ' ' '\n' |
  grep --extended-regexp '^[0-9.]+$' | grep --invert-match '^127\.' | head --lines=1) || true
[ -n "$address" ] || { echo "the head $head knows no address of its own but loopback; set address= by hand" >&2; exit 2; }
port=$((20000 + SLURM_JOB_ID % 10000))
temp=/tmp/mi-ray-$SLURM_JOB_ID                  # short: Ray makes sockets in it; for this user alone; removed at the end

# `ray stop` would end every Ray of this user on the nodes, other jobs' too. The steps hold this job's: they are ended instead.
steps=()
finish() {
  code=$?
  trap - EXIT
  [ ${#steps[@]} -eq 0 ] || kill -TERM "${steps[@]}" 2> /dev/null || true
  wait "${steps[@]}" 2> /dev/null || true
  on --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" rm -rf "$temp"
  exit "$code"
}
trap finish EXIT
trap 'exit 143' TERM INT                        # two minutes before the time limit: finished blocks are stored already

# The dashboard stays on loopback; `ssh -L 8265:localhost:PORT` through the login node shows it. Ray Client's port does not (it
# cannot be left out either, and --block ends when its process does): the token is what guards it. `exec`: the step's end is Ray's.
step --nodes=1 --ntasks=1 --nodelist="$head" bash -c "(mkdir '$temp' 2> /dev/null || [[ -O '$temp' && ! -L '$temp' ]]) && exec ray start --head --block --node-ip-address=$address \
  --port=$port --dashboard-host=127.0.0.1 --dashboard-port=$((port + 10000)) --ray-client-server-port=$((port + 20000)) \
  --temp-dir='$temp' --num-cpus=${SLURM_CPUS_PER_TASK:-1}" &
steps+=($!)
for try in {1..60}; do
  ray status --address "$address:$port" > /dev/null 2>&1 && break
  [ "$try" -lt 60 ] || { echo "no Ray head on $head ($address:$port) after two minutes" >&2; exit 1; }
  sleep 2
done

workers=$((${#nodes[@]} - 1))
if [ "$workers" -gt 0 ]; then
  step --nodes="$workers" --ntasks="$workers" --exclude="$head" bash -c "(mkdir '$temp' 2> /dev/null || [[ -O '$temp' && ! -L '$temp' ]]) && exec ray start --block \
    --address=$address:$port --num-cpus=${SLURM_CPUS_PER_TASK:-1}" &
  steps+=($!)
fi

# In the background and waited for: bash runs a trap only between commands, and the signal before the time limit must be heeded.
mi-ray sweep "$sweep" --address "$address:$port" --out "$store" "$@" &
sweeping=$!
trap 'kill -TERM $sweeping 2> /dev/null; wait "$sweeping"; exit 143' TERM INT
wait "$sweeping"
