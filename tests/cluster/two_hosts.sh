#!/bin/bash
# `ray up` for real on one machine, by `make test-cluster`: docs/cluster.md followed with cluster/on_premise.yaml, its addresses filled in.
#
# Three machines as namespaces (network, processes, mounts, names of their own): a head, a worker and a laptop on one private
# network, each with its own home, /tmp and shared memory; an SSH server on the first two; a folder that all three mount.
# The laptop launches, is turned away where it must be, submits a sweep and goes on without it; the worker's raylet is killed in
# mid-sweep, the head in another one, which goes on under a new head; the rows must equal an undisturbed run's. Whatever happens,
# nothing is left: processes, namespaces, keys, files.
#
# Needs root and sshd, ssh, ssh-keygen, rsync, ip, unshare, nsenter (Debian: openssh-server openssh-client rsync iproute2 util-linux).
# Exit code 77: cannot be run here, with what is missing. The set-up commands run word for word but for pip
# (the hosts have no way to a package index): the environment that they make finds this checkout's packages by a link.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
packages=$("$checkout/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
tag=mi$$ head=10.77.0.1 worker=10.77.0.2 laptop=10.77.0.3
study=kill_test store=/srv/mi-ray/results
began=$(date +%s)

say() { echo "[$(($(date +%s) - began)) s] $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
skip() { echo "two_hosts.sh: cannot run here: $*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || skip "needs root"
PATH=$PATH:/usr/sbin:/sbin
for tool in sshd ssh ssh-keygen rsync ip unshare nsenter make; do command -v $tool > /dev/null || skip "$tool is not installed"; done
unshare --net --mount --pid --fork --mount-proc true 2> /dev/null || skip "namespaces are not allowed"
case $checkout in /tmp/* | /home/*) skip "the checkout must not be in /tmp or /home, which the hosts have of their own";; esac

work=$(mktemp -d /var/tmp/mi-ray-two-hosts.XXXXXX)
declare -A inside=() # host -> process id of its first process, as this machine counts
outside=()

show_logs() {
  for log in "$work"/*.log; do [ -s "$log" ] && { echo "--- $log"; tail -n "${LINES_OF_LOG:-60}" "$log"; }; done >&2 || true
}

finish() {
  code=$?
  trap - EXIT INT TERM
  [ $code -eq 0 ] || show_logs
  # A host's first process takes all others of its namespace with it, however they were started.
  for pid in "${inside[@]}"; do kill -KILL "$pid" 2> /dev/null || true; done
  for pid in "${outside[@]}"; do wait "$pid" 2> /dev/null || true; done
  for name in head worker laptop; do ip netns del "$tag-$name" 2> /dev/null || true; done
  rm -rf "$work"
  left=$(ip netns list | grep "^$tag-" || true)
  held=$(grep -l "$tag" /proc/[0-9]*/environ 2> /dev/null | grep -v "/$$/" || true)
  [ -z "$left$held" ] && [ ! -e "$work" ] || { echo "left behind: $left $held" >&2; code=1; }
  echo "[$(($(date +%s) - began)) s] torn down; nothing left of namespaces, processes and files"
  exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- three machines on one network ------------------------------------------------------------------------------------------

cat > "$work/machine.sh" << 'MACHINE'
# Runs as the first process of a machine: its own places, then its SSH server (the laptop only waits).
set -euo pipefail
name=$1 address=$2 work=$3
hostname "$name"
mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /home && mount -t tmpfs tmpfs /run
mkdir -p /home/mi-ray /run/sshd "$work/share"
mount --bind "$work/passwd" /etc/passwd && mount --bind "$work/hosts" /etc/hosts
mount -t tmpfs tmpfs /srv && mkdir /srv/mi-ray && mount --bind "$work/share" /srv/mi-ray
touch "$work/$name.up"
[ "$name" = laptop ] && exec sleep infinity
exec "$(command -v sshd)" -D -e -f /dev/null -o "ListenAddress=$address" -o "HostKey=$work/host_key" -o PidFile=none -o UsePAM=no \
  -o "AuthorizedKeysFile=$work/authorized_keys" -o StrictModes=no -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password \
  -o Subsystem="sftp internal-sftp"
MACHINE
sed 's#^root:\([^:]*:[^:]*:[^:]*:[^:]*\):[^:]*:[^:]*$#root:\1:/home/mi-ray:/bin/bash#' /etc/passwd > "$work/passwd"
printf '127.0.0.1 localhost\n%s head\n%s worker\n%s laptop\n' $head $worker $laptop > "$work/hosts"
ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$work/user_key"
cp "$work/user_key.pub" "$work/authorized_keys"

for name in head worker laptop; do
  ip netns add "$tag-$name"
  ip -n "$tag-$name" link set lo up
done
ip -n "$tag-laptop" link add lan type bridge
ip -n "$tag-laptop" address add $laptop/24 dev lan
ip -n "$tag-laptop" link set lan up
for name in head worker; do
  ip link add lan netns "$tag-$name" type veth peer name "$name" netns "$tag-laptop"
  ip -n "$tag-laptop" link set "$name" master lan up
  ip -n "$tag-$name" address add ${!name}/24 dev lan
  ip -n "$tag-$name" link set lan up
done

for name in head worker laptop; do
  MI_RAY_TEST=$tag ip netns exec "$tag-$name" unshare --mount --pid --fork --uts --ipc --mount-proc --kill-child \
    bash "$work/machine.sh" $name "${!name}" "$work" > "$work/$name.log" 2>&1 &
  outside+=($!)
  for _ in {1..100}; do [ -e "$work/$name.up" ] && break; sleep 0.1; done
  [ -e "$work/$name.up" ] || fail "the machine $name did not start"
  inside[$name]=$(pgrep --parent "${outside[-1]}")
done

# on NAME COMMAND: run a shell command on a machine, as its user would after logging in.
on() {
  local name=$1
  shift
  nsenter --target "${inside[$name]}" --all --wd="$checkout" env --ignore-environment MI_RAY_TEST=$tag HOME=/home/mi-ray USER=root \
    LANG=C.UTF-8 PATH="$checkout/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" RAY_UP_enable_autoscaler_v2=0 \
    RAY_USAGE_STATS_ENABLED=0 PYTHONPATH="$checkout" bash -c "$*"
}

# What pip would bring into the environment that a host's set-up commands make; and that they have no pip.
for name in head worker; do
  on $name "
    own=~/.mi_ray_env/lib/$(basename "$(dirname "$packages")")/site-packages
    mkdir -p ~/mi-ray ~/.mi_ray_env/bin \$own
    echo 'export MAKEFLAGS=\"PIP=true PYTHON=$checkout/.venv/bin/python\"' > ~/.bashrc
    printf '%s\n' /home/mi-ray/mi-ray 'import site; site.addsitedir(\"$packages\")' > \$own/linked.pth
    for script in ray.scripts.scripts:ray mi_ray.cli:mi-ray; do
      printf '#!%s\nfrom %s import main\nmain()\n' ~/.mi_ray_env/bin/python \${script%:*} > ~/.mi_ray_env/bin/\${script#*:}
      chmod +x ~/.mi_ray_env/bin/\${script#*:}
    done"
done
say "three machines are up: head $head, worker $worker, laptop $laptop"

# --- launch, as docs/cluster.md says ----------------------------------------------------------------------------------------

file=$work/on_premise.yaml
sed -e "s/192\.0\.2\.10/$head/; s/192\.0\.2\.11/$worker/; s/ssh_user: mi-ray/ssh_user: root/" \
  -e "s#~/.ssh/mi_ray_ed25519#$work/user_key#" "$checkout/cluster/on_premise.yaml" > "$file"
on laptop '(umask 077; ray get-auth-token --generate > /dev/null 2>&1)'
on laptop "mi-ray cluster check $file" | tee "$work/check.log"
grep -q '0 errors, 0 warnings' "$work/check.log" || fail "the filled-in file must have neither errors nor warnings"
on laptop "ray up --yes --no-config-cache $file" > "$work/up.log" 2>&1
say "ray up done"
nodes="import ray; ray.init(address='auto', log_to_driver=False, logging_level='critical'); print('alive', sum(n['Alive'] for n in ray.nodes()))"
alive() { on head "cd ~/mi-ray && ~/mi-ray/.venv/bin/python -c \"$nodes\"" 2> "$work/nodes.log" | grep -q "alive $1"; }
for _ in {1..60}; do alive 2 && break; sleep 2; done
alive 2 || fail "the worker did not join"
say "the worker joined"

# --- who is turned away ------------------------------------------------------------------------------------------------------

closed() { ! on laptop "exec 3<> /dev/tcp/$1/$2" 2> /dev/null || fail "$1:$2 must not answer other machines"; }
on laptop "exec 3<> /dev/tcp/$head/22" || fail "SSH must answer"
closed $head 8265
closed $head 10001
for host in head worker; do
  mode=$(on $host 'stat --format=%a ~/.ray/auth_token')
  [ "$mode" = 600 ] || fail "the token on $host must be for its user alone; its mode is $mode"
done
refused=$(on laptop "HOME=/nowhere RAY_AUTH_MODE=disabled timeout 60 ray status --address $head:6379" 2>&1) && fail "GCS must refuse who has no token"
grep -q 'InvalidAuthToken\|AuthenticationError' <<< "$refused" || fail "GCS must name the token as its reason: $refused"
for _ in {1..90}; do on laptop "exec 3<> /dev/tcp/$worker/52365" 2> /dev/null && break; sleep 1; done
code=$(on laptop "HOME=/nowhere python -c \"
import urllib.error, urllib.request
try: print(urllib.request.urlopen('http://$worker:52365/api/job_agent/jobs/', data=b'{}', timeout=20).status)
except urllib.error.HTTPError as error: print(error.code)\"")
[ "$code" = 401 ] || fail "a node's agent must refuse a job from who has no token; it answered $code"
say "turned away: dashboard and Ray Client from elsewhere, GCS and a node's agent without the token"

# --- submit, detached; kill the worker in mid-sweep; the rows must not care -------------------------------------------------

MI_RAY_TEST=$tag on laptop "exec ray dashboard --no-config-cache $file" > "$work/dashboard.log" 2>&1 &
outside+=($!)
for _ in {1..30}; do on laptop 'exec 3<> /dev/tcp/127.0.0.1/8265' 2> /dev/null && break; sleep 1; done
job() { on laptop "RAY_AUTH_MODE=token ray job $*"; }
api="--address http://127.0.0.1:8265"
sweep="mi-ray sweep sweeps/quickstart.yaml --smoke --set name=$study --set points.count=200 --set batch=10 --set resources.block.points=10"
job "submit $api -- bash -c 'cd ~/mi-ray && mi-ray sweep no_such_file.yaml'" > "$work/failing.log" 2>&1 && fail "a failed job must exit non-zero"
grep -q 'a sweep file must be readable' "$work/failing.log" || fail "a failed job must say why"
on laptop "ray exec --no-config-cache $file 'cd mi-ray && mi-ray sweep no_such_file.yaml'" > "$work/exec.log" 2>&1 && fail "ray exec must pass a failure on"
on laptop "ray submit $file mi_ray/cli.py sweep no_such_file.yaml" > "$work/script.log" 2>&1 && fail "ray submit must pass a failure on"
grep -q 'a sweep file must be readable' "$work/script.log" || fail "ray submit must show why the script failed"
on laptop "ray submit $file mi_ray/cli.py list" > "$work/script.log" 2>&1 || fail "ray submit must run the command line"
say "a failed job exits non-zero and says why, by ray job submit, ray exec and ray submit"
mkdir "$work/data" && echo example > "$work/data/example.txt"
on laptop "ray rsync-up $file $work/data/ '~/mi-ray/data/'" > "$work/rsync.log" 2>&1
[ "$(on head 'cat ~/mi-ray/data/example.txt')" = example ] || fail "ray rsync-up must bring data to the head"
job "submit $api --no-wait --submission-id $study -- bash -c 'cd ~/mi-ray && $sweep --address auto --out $store'" > "$work/submit.log" 2>&1
say "the sweep is submitted"

blocks() { find "$work/share" -name 'points-*.parquet' 2> /dev/null | wc -l; }
ended() { job "status $api $study" 2>&1 | grep -E -o "Job '$study' (succeeded|failed|was stopped)" || true; }
busy() { on worker "ps -eo args= | grep '^ray::' | grep -v 'IDLE\|Agent' | sed 's/ .*//' | sort | uniq -c | xargs" || true; }
for _ in {1..3000}; do [ "$(blocks)" -ge 5 ] && [ -n "$(busy)" ] && break; sleep 0.2; done
[ "$(blocks)" -ge 5 ] || { job "logs $api $study" > "$work/job.log" 2>&1 || true; fail "the sweep did not start to store blocks"; }
raylet=$(on worker 'pgrep --exact raylet')
ran=$(busy)
on worker "kill -KILL $raylet"
at=$(blocks)
[ -z "$(ended)" ] || fail "the sweep was over before the worker could be killed"
say "the worker's raylet is killed with $at blocks stored; it ran: ${ran:-nothing}"
on laptop "mi-ray status $store" | tee "$work/status.log"
grep -q "$study" "$work/status.log" || fail "mi-ray status must show the running study"
for _ in {1..600}; do [ -n "$(ended)" ] && break; sleep 2; done
job "logs $api $study" > "$work/job.log" 2>&1 || true
[ "$(ended)" = "Job '$study' succeeded" ] || fail "the sweep must succeed; ray job status says: $(ended)"
say "the sweep succeeded: $(grep -o '[0-9]* of [0-9]* cells' "$work/job.log" | tail -n 1)"
for _ in {1..90}; do alive 2 && break; sleep 1; done
alive 2 || fail "the worker must be back"
say "the worker is back"

# same_rows STORE STUDY: a store is sound, and a study in it has the rows that the laptop computes with nothing in its way.
same_rows() {
  on laptop "mi-ray check $1"
  on laptop "cd '$checkout' && ${sweep/$study/$2} --out /tmp/undisturbed" > "$work/undisturbed.log" 2>&1
  on laptop "python - $1 /tmp/undisturbed $2" << 'COMPARE' || fail "the rows must equal an undisturbed run's"
import sys
import pandas as pd
import mi_ray
found = []
for store in sys.argv[1:3]:
    rows = mi_ray.read_records(store, study=sys.argv[3]).sort_values(["cell", "point"]).reset_index(drop=True)
    assert not rows.duplicated(["cell", "point"]).any()
    found.append(rows)
pd.testing.assert_frame_equal(*found)
print(f"{len(found[0])} rows in {found[0].cell.nunique()} cells, equal to an undisturbed run's")
COMPARE
}
same_rows $store $study
on laptop "ray rsync-down $file $store/studies/$study/figures/ $work/figures/" > "$work/rsync.log" 2>&1
[ -s "$work/figures/fig3b.png" ] || fail "ray rsync-down must fetch the figures"
temporary=$(find "$work/share" -name '.*' -type f; find "$work/share" -maxdepth 1 -name '*-scratch')
[ -z "$temporary" ] || fail "no temporary file may be left in the store: $temporary"

# --- the head dies: a new one, and the same command ---------------------------------------------------------------------------

second=/srv/mi-ray/second
again="cd ~/mi-ray && ${sweep/$study/head_test} --address auto --out $second"
job "submit $api --no-wait --submission-id head_test -- bash -c '$again'" > "$work/submit.log" 2>&1
stored() { find "$work/share/second" -name 'points-*.parquet' 2> /dev/null | wc -l; }
for _ in {1..3000}; do [ "$(stored)" -ge 5 ] && break; sleep 0.2; done
[ "$(stored)" -ge 5 ] || fail "the second sweep did not start to store blocks"
# As when its machine goes: GCS, raylet, dashboard, autoscaler and the sweep's own command all at once.
on head "pgrep --full 'ray|mi-ray' | grep --invert-match --line-regexp \$\$ | xargs kill -KILL" 2> /dev/null || true
say "everything of Ray on the head is killed, and the command with it, with $(stored) blocks stored"
gone=$(date +%s)
on laptop "ray up --yes --no-config-cache $file" > "$work/up.log" 2>&1
for _ in {1..90}; do alive 2 && break; sleep 2; done
alive 2 || fail "the worker must join the new head"
say "ray up again: head and worker are there $(($(date +%s) - gone)) s after the head died"
on laptop "ray exec --no-config-cache $file '$again'" > "$work/exec.log" 2>&1 || fail "the same command must go on after the head has died"
say "the same command went on and ended $(($(date +%s) - gone)) s after the head died"
same_rows $second head_test

# --- tear down ---------------------------------------------------------------------------------------------------------------

on laptop "ray down --yes $file" > "$work/down.log" 2>&1
say "ray down done"
for process in raylet gcs_server; do ! on head "pgrep --exact $process" || fail "ray down must end $process on the head"; done
waited=0
while on worker 'pgrep --exact raylet' > /dev/null && [ $waited -lt 90 ]; do sleep 1; waited=$((waited + 1)); done
say "the worker's raylet $([ $waited -lt 90 ] && echo "ended by itself $waited s after ray down" || echo "still runs 90 s after ray down")"
on laptop "ssh -i $work/user_key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@$worker 'bash -ic \"ray stop\"'" > "$work/stop.log" 2>&1
! on worker 'pgrep --exact raylet' || fail "ray stop must end Ray on the worker"
say "PASSED"
