# Tells what a container's environment is made of. Whoever compares two of them sorts the lines of each section.
echo "[env]"; env
echo "[id]"; id; grep -E '^(Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status
echo "[limits]"; cat /proc/self/limits /proc/self/oom_score_adj
echo "[place]"; pwd; umask; hostname; cat /proc/sys/kernel/domainname
echo "[mounts]"
while read id parent dev root at options rest; do
    kind=${rest#*- }
    echo "$at $options ${kind%% *}"
done < /proc/self/mountinfo
echo "[dev]"; ls -ln /dev /dev/pts /dev/shm | grep -v '^total' | sed -E 's/ [A-Z][a-z]{2} +[0-9]+ +[0-9:]+ / /'
echo "[masked]"
for name in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats; do
    path=/proc/$name
    if [ -d $path ]; then
        echo "$path directory $(ls $path | wc -l)"
    elif [ -e $path ]; then
        echo "$path $(stat -c %t:%T $path) $(head -c 1 $path 2>&1 | wc -c)"
    fi
done
for path in /sys/firmware /sys/devices/virtual/powercap; do [ -e $path ] && echo "$path $(ls $path | wc -l)"; done
echo "[write]"
for path in /proc/sys/kernel/domainname /proc/irq/default_smp_affinity /sys/kernel/profiling /sys/fs/cgroup/memory/notify_on_release; do
    (: >> $path) 2>&1 | sed "s|.*: |$path: |"
done
echo "[sysctl]"; cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start
echo "[cgroup]"; cut -d: -f2- /proc/self/cgroup
for file in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.shares; do
    echo "$file $(cat /sys/fs/cgroup/$file 2>&1)"
done
echo "[processes]"; cat /proc/1/comm; ls /proc/self/fd | wc -l
echo "[net]"; ls /sys/class/net; wc -l < /etc/hosts
echo "[devices]"
for node in "b 7 0" "c 10 200" "c 1 3" "c 1 11"; do
    rm -f /tmp/node
    if mknod /tmp/node $node 2>/dev/null; then
        (head -c 0 /tmp/node) 2>&1 | sed "s/.*: /$node: /"
        echo "$node made"
    else
        echo "$node not made"
    fi
done
