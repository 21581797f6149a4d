#!/bin/bash
# cluster/slurm.sh with stand-ins for srun and scontrol, by `make test-cluster`: two "nodes" that are this machine, in namespaces of
# their own. Shows that the script starts Ray with a token, runs a sweep, ends with its exit code, and leaves nothing running; it
# cannot show that a site's Slurm agrees. Needs root, ip and unshare; exit code 77: cannot be run here.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  [ "$(id -u)" = 0 ] && command -v ip unshare > /dev/null || { echo "slurm_alone.sh: needs root, ip and unshare" >&2; exit 77; }
  unshare --net --mount --pid --fork --mount-proc true 2> /dev/null || { echo "slurm_alone.sh: namespaces are not allowed" >&2; exit 77; }
  exec unshare --net --mount --pid --fork --uts --ipc --mount-proc --kill-child bash "$0" inside
fi

checkout=$(cd "$(dirname "$0")/../.." && pwd)
mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /home
ip link set lo up && ip address add 10.78.0.1/24 dev lo
mkdir -p /home/user /tmp/stand-ins
cat > /tmp/stand-ins/srun << 'SRUN'
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
[ "$1" != hostname ] || exec echo 127.0.1.1 10.78.0.1
exec "$@"
SRUN
printf '#!/bin/bash\nprintf "%%s\\n" node1 node2\n' > /tmp/stand-ins/scontrol
chmod +x /tmp/stand-ins/*
export HOME=/home/user PATH=/tmp/stand-ins:$PATH SLURM_SUBMIT_DIR=$checkout SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='node[1-2]' \
  SLURM_CPUS_PER_TASK=1 PYTHONPATH=$checkout

fail() { echo "FAILED: $*" >&2; tail -n 40 /tmp/*.out >&2; exit 1; }
quiet() { # nothing of Ray runs, and nothing is left of its folder
  for _ in {1..30}; do pgrep raylet > /dev/null || pgrep gcs_server > /dev/null || break; sleep 1; done
  ! pgrep raylet && ! pgrep gcs_server || fail "Ray still runs after the job"
  [ ! -e /tmp/mi-ray-4711 ] || fail "the job's folder is still there"
}

cd "$checkout"
bash cluster/slurm.sh sweeps/quickstart.yaml /tmp/results --smoke > /tmp/job.out 2>&1 || fail "the job must succeed; it exited with $?"
grep -q '14 of 14 cells' /tmp/job.out || fail "the job must do every cell"
grep -q 'note: the store' /tmp/job.out || fail "both nodes must have joined"   # said on clusters of more than one node
quiet
.venv/bin/python -m mi_ray.cli check /tmp/results
code=0
bash cluster/slurm.sh no_such_file.yaml /tmp/results > /tmp/failing.out 2>&1 || code=$?
[ $code = 2 ] || fail "the job's exit code must be the sweep's, 2; it is $code"
quiet
bash cluster/slurm.sh sweeps/quickstart.yaml /tmp/stopped > /tmp/stopped.out 2>&1 &
job=$!
for _ in {1..120}; do pgrep --full 'mi-ray sweep' > /dev/null && break; sleep 0.5; done
sleep 5
kill -TERM $job     # as Slurm does two minutes before the time limit
code=0
wait $job || code=$?
[ $code = 143 ] || fail "a stopped job must say so, 143; it says $code"
quiet
! grep -r --files-with-matches RAY_AUTH_TOKEN= /home /tmp --include='*' --exclude-dir=stand-ins 2> /dev/null || fail "the token must be in no file"
echo "PASSED: slurm.sh with stand-ins: two nodes, 14 cells, exit codes 0, 2 and 143, nothing left"
