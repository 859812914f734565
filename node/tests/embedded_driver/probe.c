// Says how the kernel answers calls that a container must not make. Built by the tests as a static program.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void say(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "OK");
}

int main(void) {
    say("mount", mount("none", "/tmp", "tmpfs", 0, ""));
    say("unshare-user", unshare(CLONE_NEWUSER));
    say("unshare-mounts", unshare(CLONE_NEWNS));
    say("clone-user", syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0));
    say("clone3", syscall(SYS_clone3, 0, 0));
    say("setns", setns(0, 0));
    say("keyctl", syscall(SYS_keyctl, 0, -3, 0, 0, 0));
    say("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
    say("bpf", syscall(SYS_bpf, 0, 0, 0));
    say("perf_event_open", syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
    say("io_uring_setup", syscall(SYS_io_uring_setup, 1, 0));
    say("open_by_handle_at", syscall(SYS_open_by_handle_at, 0, 0, 0));
    say("init_module", syscall(SYS_init_module, 0, 0, ""));
    say("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    say("settimeofday", syscall(SYS_settimeofday, 0, 0));
    say("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    say("newer-than-known", syscall(500));
    say("socket", socket(AF_INET, SOCK_STREAM, 0));
    // A device of the host: made in the root file system, and where devices are allowed.
    mknod("/sda", S_IFBLK | 0600, makedev(254, 0));
    say("device-in-root", open("/sda", O_RDONLY));
    mknod("/dev/sda", S_IFBLK | 0600, makedev(254, 0));
    say("device-in-dev", open("/dev/sda", O_RDONLY));
    say("null", open("/dev/null", O_WRONLY));
    say("write-proc-sys", open("/proc/sys/kernel/hostname", O_WRONLY));
    const char *groups[] = {"pids/x", "memory/x", "cpu/x", "devices/x", "freezer/x", "systemd/x", "x"};
    int written = 0;
    for (unsigned i = 0; i < sizeof groups / sizeof *groups; i++) {
        char path[64];
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", groups[i]);
        written += mkdir(path, 0755) == 0;
    }
    printf("groups-written %d\n", written);
    say("read-cgroup", access("/sys/fs/cgroup", R_OK));
    return 0;
}
