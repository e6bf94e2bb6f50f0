#!/usr/bin/env bash
# Two stand-ins for SLURM nodes on this machine: each has a network, processes and a Ray folder of its own, so that
# `ray symmetric-run` (which looks for Ray among the node's processes, and stops all of it) meets two real nodes.
#
#   stand_in_nodes.sh SCRATCH COMMAND...     runs COMMAND with `srun` and `scontrol` of its own on the PATH
#   stand_in_nodes.sh --can                  exits 0 if this machine allows that
set -euo pipefail

isolate=(unshare --net --pid --mount --fork --mount-proc --kill-child)
[[ $(id -u) == 0 ]] || isolate+=(--map-root-user)
if [[ ${1:-} == --can ]]; then
    exec "${isolate[@]}" bash -c 'ip link set lo up && ip link add name cable1 type veth peer name cable2'
fi
if [[ ${1:-} != --inside ]]; then
    exec "${isolate[@]}" "$0" --inside "$@"
fi
shift
scratch=$1
shift

# Node 1 lives in this network, node 2 in another one at the end of a virtual cable.
ip link set lo up
unshare --net sleep 100000 &
second=$!
while [[ $(readlink /proc/$second/ns/net) == $(readlink /proc/$$/ns/net) ]]; do sleep 0.05; done
ip link add name cable1 type veth peer name cable2
ip link set cable2 netns $second
ip address add 10.77.0.1/24 dev cable1
ip link set cable1 up
nsenter --net=/proc/$second/ns/net bash -c \
    'ip link set lo up; ip address add 10.77.0.2/24 dev cable2; ip link set cable2 up'

mkdir -p "$scratch/bin" "$scratch/n1" "$scratch/n2"
cat >"$scratch/bin/scontrol" <<END
#!/usr/bin/env bash
case \$1 in
    show) for ((n = 1; n <= SLURM_JOB_NUM_NODES; n++)); do echo "10.77.0.\$n"; done ;;
    requeue) echo "\$2" >"$scratch/requeued" ;;
esac
END
# Bash is the first process of a node, because the first one must reap: `ray stop` waits for what is left as a zombie.
# The short reconnect timeout only makes the second node notice sooner that the head has gone.
cat >"$scratch/bin/srun" <<END
#!/usr/bin/env bash
while [[ \$1 == --* ]]; do shift; done
node() {
    RAY_TMPDIR=$scratch/n\$1 \\
        unshare --pid --mount --fork --mount-proc --kill-child bash -c '"\$@"; exit \$?' node "\${@:2}"
}
node 1 "\$@" & first=\$!
if ((SLURM_JOB_NUM_NODES > 1)); then
    RAY_gcs_rpc_server_reconnect_timeout_s=5 \\
        nsenter --net=/proc/$second/ns/net bash -c "\$(declare -f node); node 2 \"\\\$@\"" node "\$@" & other=\$!
fi
code=0
wait \$first || { code=\$?; echo "stand-in node 1: exit \$code"; }
wait \${other:-} || { code=\$?; echo "stand-in node 2: exit \$code"; }
exit \$code
END
chmod +x "$scratch/bin/scontrol" "$scratch/bin/srun"
PATH=$scratch/bin:$PATH "$@"
