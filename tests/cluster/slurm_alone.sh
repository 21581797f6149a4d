#!/bin/bash
# cluster/slurm.sh as a job of a real Slurm, by `make test-cluster`: a controller and two nodes that are this machine, in namespaces of
# their own. Shows that Slurm takes the script, that Ray starts with a token on both nodes, that the job runs a sweep and ends with its
# exit code, also when it is stopped as before its time limit, and that nothing is left running; it cannot show a site's own rules.
#
# Needs root, ip, unshare, and Slurm with munge (Debian: slurmctld slurmd slurm-client munge). Exit code 77: cannot be run here.
set -euo pipefail
skip() { echo "slurm_alone.sh: cannot run here: $*" >&2; exit 77; }
PATH=$PATH:/usr/sbin:/sbin
if [ "${1:-}" != inside ]; then
  [ "$(id -u)" = 0 ] || skip "needs root"
  for tool in ip unshare slurmctld slurmd sbatch munged; do command -v $tool > /dev/null || skip "$tool is not installed"; done
  unshare --net --mount --pid --fork --mount-proc true 2> /dev/null || skip "namespaces are not allowed"
  exec unshare --net --mount --pid --fork --uts --ipc --mount-proc --kill-child bash "$0" inside
fi

checkout=$(cd "$(dirname "$0")/../.." && pwd)
mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /home
ip link set lo up && ip address add 10.78.0.1/24 dev lo
hostname machine
printf '127.0.0.1 localhost\n127.0.1.1 machine\n10.78.0.1 machine\n' > /tmp/hosts
mount --bind /tmp/hosts /etc/hosts                # a machine that knows its own name on loopback too, as Debian's installer makes them
mkdir -p /home/user /tmp/slurm/state
export HOME=/home/user PYTHONPATH=$checkout SLURM_CONF=/tmp/slurm/slurm.conf
fail() { echo "FAILED: $*" >&2; tail -n 40 /tmp/*.out /tmp/slurm/*.log >&2; exit 1; }

cat > "$SLURM_CONF" << 'CONF'
ClusterName=alone
SlurmctldHost=machine(10.78.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/tmp/slurm/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
StateSaveLocation=/tmp/slurm/state
SlurmdSpoolDir=/tmp/slurm/spool-%n
SlurmctldPidFile=/tmp/slurm/controller.pid
SlurmdPidFile=/tmp/slurm/%n.pid
SlurmctldLogFile=/tmp/slurm/controller.log
SlurmdLogFile=/tmp/slurm/%n.log
NodeName=n1 NodeHostname=machine NodeAddr=10.78.0.1 Port=17001 CPUs=1 Gres=gpu:1
NodeName=n2 NodeHostname=machine NodeAddr=10.78.0.1 Port=17002 CPUs=1 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
printf 'NodeName=n1 Name=gpu File=/dev/zero\nNodeName=n2 Name=gpu File=/dev/full\n' > /tmp/slurm/gres.conf  # no GPU, but something to ask for
head --bytes=128 /dev/urandom > /tmp/slurm/munge.key
chmod 400 /tmp/slurm/munge.key
munged --force --socket=/tmp/slurm/munge.socket --key-file=/tmp/slurm/munge.key --pid-file=/tmp/slurm/munge.pid \
  --log-file=/tmp/slurm/munge.log --seed-file=/tmp/slurm/munge.seed 2> /tmp/slurm/munge-said.log
slurmctld
for node in n1 n2; do slurmd -N $node; done
for _ in {1..60}; do [ "$(sinfo --noheader --Node --states=idle | wc -l)" = 2 ] && break; sleep 1; done
[ "$(sinfo --noheader --Node --states=idle | wc -l)" = 2 ] || fail "Slurm's nodes must be idle"

submit() { # output, arguments of slurm.sh: ends with the job's exit code; each node has one CPU
  sbatch --wait --cpus-per-task=1 --output="$1" cluster/slurm.sh "${@:2}"
}
quiet() { # nothing of Ray runs, and nothing is left of its folder
  for _ in {1..30}; do pgrep raylet > /dev/null || pgrep gcs_server > /dev/null || break; sleep 1; done
  ! pgrep raylet && ! pgrep gcs_server || fail "Ray still runs after the job"
  ! ls -d /tmp/mi-ray-[0-9]* 2> /dev/null || fail "the job's folder is still there"
}

cd "$checkout"
submit /tmp/job.out sweeps/quickstart.yaml /tmp/results --smoke || fail "the job must succeed; it exited with $?"
grep -q '14 of 14 cells' /tmp/job.out || fail "the job must do every cell"
grep -q 'note: the store' /tmp/job.out || fail "both nodes must have joined"   # said on clusters of more than one node
quiet
.venv/bin/python -m mi_ray.cli check /tmp/results
code=0
submit /tmp/failing.out no_such_file.yaml /tmp/results || code=$?
[ $code = 2 ] || fail "the job's exit code must be the sweep's, 2; it is $code"
quiet
submit /tmp/stopped.out sweeps/quickstart.yaml /tmp/stopped &
job=$!
for _ in {1..120}; do pgrep --full 'mi-ray sweep' > /dev/null && break; sleep 0.5; done
sleep 5
scancel --batch --signal=TERM "$(squeue --noheader --format=%i)"     # as Slurm does two minutes before the time limit
code=0
wait $job || code=$?
[ $code = 143 ] || fail "a stopped job must say so, 143; it says $code"
quiet
! grep -r --files-with-matches --extended-regexp 'RAY_AUTH_TOKEN=[0-9a-f]{8}' /home /tmp 2> /dev/null || fail "the token must be in no file"
echo "PASSED: slurm.sh as a job of $(sbatch --version): two nodes, 14 cells, exit codes 0, 2 and 143, nothing left"
