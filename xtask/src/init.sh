#!/bin/busybox sh
# First program of a machine of the kernel matrix: runs the agent and sends its files.
export PATH=/bin
# An arena for each thread costs each of them three changes of the address space, and under emulation
# threads that start together wait long for each other there.
export MALLOC_ARENA_MAX=1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
ifconfig lo 127.0.0.1 up
hostname matrix
# Raw: data goes out as it is.
stty -F /dev/ttyS1 raw -echo 115200

exec 3> /dev/ttyS1
echo "<<<up>>>" >&3

send() {
    echo "<<<begin $1>>>" >&3
    [ -f "/tmp/$1" ] && cat "/tmp/$1" >&3
    # A file may end without a line's end; the marker stands on a line of its own.
    printf '\n<<<end %s %s>>>\n' "$1" "$2" >&3
}

timeout 60 /perf-agent doctor > /tmp/doctor.txt 2>&1
send doctor.txt $?

timeout 120 /perf-agent trace --duration 20s --format ndjson --output /tmp/out.ndjson --tls on \
    -- /truth --json /tmp/truth.json > /tmp/trace.out 2> /tmp/trace.err
code=$?
send trace.err $code
if [ $code -ne 0 ]; then
    # The verifier's own words, where it refused a program.
    timeout 60 /perf-agent -vv verify > /tmp/verify.txt 2>&1
    send verify.txt $?
fi
send trace.out 0
send truth.json 0
send out.ndjson 0
dmesg > /tmp/dmesg.txt
send dmesg.txt 0
echo "<<<done>>>" >&3
exec 3>&-
poweroff -f
