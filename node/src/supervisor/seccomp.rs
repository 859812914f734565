//! The system calls that a container may make: Docker's default profile for the capabilities that it has.
//!
//! Source: moby, `profiles/seccomp`, version 28. Differences: 32-bit programs
//! are killed (the filter knows one architecture), and calls newer than the table fail with ENOSYS, as runc arranges, so
//! that C libraries fall back to older ones.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// First number that the table does not know, and the last that is answered with ENOSYS.
const NEWER: std::ops::RangeInclusive<i64> = 463..=511;
/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;
/// What `personality` may be asked for: Linux, 32-bit, both with `UNAME26`, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The filters of a container, in the order in which they are installed.
#[derive(Clone)]
pub struct Filters {
    allow: BpfProgram,
    newer: BpfProgram,
}

impl Filters {
    /// Compiles the filters for this machine's architecture and a container with these capabilities.
    pub fn compile(capabilities: &[&str]) -> Result<Self, BackendError> {
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            COMMON.iter().chain(NATIVE).map(|number| (*number, Vec::new())).collect();
        rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?]);
        rules.insert(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Ne, AF_VSOCK)?]);
        let personalities: Result<Vec<SeccompRule>, BackendError> =
            PERSONALITIES.iter().map(|value| rule(0, SeccompCmpOp::Eq, *value)).collect();
        rules.insert(libc::SYS_personality, personalities?);
        let granted = BY_CAPABILITY.iter().filter(|(name, _)| capabilities.contains(name));
        rules.extend(granted.flat_map(|(_, calls)| calls.iter()).map(|number| (*number, Vec::new())));
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let allow = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()?;

        // Of two filters that refuse, the one installed last names the error.
        let unknown = std::iter::once(libc::SYS_clone3).chain(NEWER).map(|number| (number, Vec::new())).collect();
        let absent = SeccompAction::Errno(libc::ENOSYS as u32);
        let newer = SeccompFilter::new(unknown, SeccompAction::Allow, absent, arch)?.try_into()?;
        Ok(Self { allow, newer })
    }

    /// Installs the filters for this thread and all that it starts. There is no way back.
    pub fn install(&self) -> Result<(), seccompiler::Error> {
        seccompiler::apply_filter(&self.allow)?;
        seccompiler::apply_filter(&self.newer)
    }
}

fn rule(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?])
}

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Allowed with any arguments, on every architecture.
#[rustfmt::skip]
const COMMON: &[i64] = numbers! {
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_chroot SYS_clock_adjtime
    SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect SYS_copy_file_range
    SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat
    SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_mark SYS_fchdir
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock
    SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_getcpu
    SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid
    SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_get_robust_list SYS_getrusage
    SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch
    SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_ioctl SYS_io_destroy SYS_io_getevents
    SYS_ioprio_get SYS_ioprio_set SYS_io_setup SYS_io_submit SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset
    SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek
    SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2
    SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend
    SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap
    SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal
    SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2
    SYS_prlimit64 SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6 SYS_ptrace SYS_pwrite64
    SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg
    SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction
    SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_tgsigqueueinfo SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr
    SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop
    SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer
    SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_set_robust_list SYS_setsid
    SYS_setsockopt SYS_set_tid_address SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown
    SYS_sigaltstack SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync
    SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun
    SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill
    SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    SYS_getrlimit SYS_setrlimit SYS_mseal
};

/// Allowed with any arguments, on this architecture alone; those that the C library's crate does not name by number:
/// `io_pgetevents`, `cachestat`, `fchmodat2`, `map_shadow_stack`, `futex_wake`, `futex_wait`, `futex_requeue`, `memfd_secret`.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const NATIVE: &[i64] = &[
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown, libc::SYS_creat,
    libc::SYS_dup2, libc::SYS_epoll_create, libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait, libc::SYS_epoll_wait_old,
    libc::SYS_eventfd, libc::SYS_fork, libc::SYS_futimesat, libc::SYS_getdents, libc::SYS_getpgrp,
    libc::SYS_get_thread_area, libc::SYS_inotify_init, libc::SYS_lchown, libc::SYS_link, libc::SYS_lstat, libc::SYS_mkdir,
    libc::SYS_mknod, libc::SYS_modify_ldt, libc::SYS_open, libc::SYS_pause, libc::SYS_pipe, libc::SYS_poll,
    libc::SYS_readlink, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select, libc::SYS_set_thread_area,
    libc::SYS_signalfd, libc::SYS_stat, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_vfork, 333, 447, 451, 452, 453, 454, 455, 456,
];

/// Allowed with any arguments, on this architecture alone.
#[cfg(target_arch = "aarch64")]
const NATIVE: &[i64] = &[292, 447, 451, 452, 453, 454, 455, 456];

/// Allowed with any arguments to containers with a capability beyond the default ones, on top of the above.
#[rustfmt::skip]
const BY_CAPABILITY: &[(&str, &[i64])] = &[
    ("CAP_DAC_READ_SEARCH", &[libc::SYS_open_by_handle_at]),
    ("CAP_SYS_ADMIN", numbers! {
        SYS_bpf SYS_clone SYS_fanotify_init SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_lookup_dcookie SYS_mount
        SYS_mount_setattr SYS_move_mount SYS_open_tree SYS_perf_event_open SYS_quotactl SYS_quotactl_fd SYS_setdomainname
        SYS_sethostname SYS_setns SYS_syslog SYS_umount2 SYS_unshare
    }),
    ("CAP_SYS_BOOT", &[libc::SYS_reboot]),
    ("CAP_SYS_MODULE", numbers! { SYS_delete_module SYS_init_module SYS_finit_module }),
    ("CAP_SYS_PACCT", &[libc::SYS_acct]),
    ("CAP_SYS_PTRACE", numbers! { SYS_kcmp SYS_pidfd_getfd SYS_process_madvise }),
    #[cfg(target_arch = "x86_64")]
    ("CAP_SYS_RAWIO", numbers! { SYS_iopl SYS_ioperm }),
    ("CAP_SYS_TIME", numbers! { SYS_settimeofday SYS_clock_settime }),
    ("CAP_SYS_TTY_CONFIG", &[libc::SYS_vhangup]),
    ("CAP_SYS_NICE", numbers! { SYS_get_mempolicy SYS_mbind SYS_set_mempolicy SYS_set_mempolicy_home_node }),
    ("CAP_SYSLOG", &[libc::SYS_syslog]),
    ("CAP_BPF", &[libc::SYS_bpf]),
    ("CAP_PERFMON", &[libc::SYS_perf_event_open]),
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the seccomp profile is written for x86_64 and aarch64");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_compiles_and_leaves_out_what_escapes_use() {
        let filters = Filters::compile(&["CAP_SYS_ADMIN", "CAP_SYS_TIME"]).unwrap();
        assert!(filters.allow.len() < 4096 && filters.newer.len() < 4096);
        let allowed: Vec<i64> = COMMON.iter().chain(NATIVE).copied().collect();
        for refused in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_open_by_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_pivot_root,
            libc::SYS_swapon,
            libc::SYS_settimeofday,
            libc::SYS_clone3,
        ] {
            assert!(!allowed.contains(&refused), "{refused}");
        }
    }
}
