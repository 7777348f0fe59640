//! The seccomp layer: groups of system calls that no mail program needs, denied with EPERM.
//!
//! A list of what is denied, not of what is allowed, and an error instead of a kill: a libc that starts to use a new call must
//! not stop mail. On x86-64 the numbers of the x32 ABI are denied altogether. `clone3` answers ENOSYS, so that libc falls back to `clone`, whose flags can be looked at.

use crate::table::{Confinement, Network};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition, SeccompFilter,
    SeccompRule as Rule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

type Rules = BTreeMap<i64, Vec<Rule>>;

/// Denied to everyone that is confined.
const ALWAYS: &[i64] = &[
    // other processes' memory
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // rings, whose operations pass no filter
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // namespaces and mounts
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // the kernel itself
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // key rings
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // names of files by handle pass by Landlock
    libc::SYS_open_by_handle_at,
];

/// CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET.
const CLONE_NAMESPACES: [u64; 7] = [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// Installs the filters for this thread and its later children; no_new_privs must be set.
///
/// # Errors
/// The kernel has no seccomp filters, or this processor has none here: the program must not go on.
pub(crate) fn confine(confinement: &Confinement) -> io::Result<()> {
    let mut denied: Rules = ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    if !confinement.exec {
        denied.insert(libc::SYS_execve, Vec::new());
        denied.insert(libc::SYS_execveat, Vec::new());
    }
    let socket = vec![other_families(confinement.network)?];
    denied.insert(libc::SYS_socket, socket.clone());
    denied.insert(libc::SYS_socketpair, socket);
    let clone: io::Result<Vec<Rule>> =
        CLONE_NAMESPACES.iter().map(|flag| rule(vec![condition(0, Len::Qword, Op::MaskedEq(*flag), *flag)?])).collect();
    denied.insert(libc::SYS_clone, clone?);
    deny_x32()?;
    install(denied, libc::EPERM)?;
    install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

/// The x32 ABI has a second number for each call, with this bit set, under the same architecture: no list would match them.
#[cfg(target_arch = "x86_64")]
fn deny_x32() -> io::Result<()> {
    const X32_BIT: u32 = 0x4000_0000;
    let step =
        |code: u32, k: u32, jf: u8| seccompiler::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf, k };
    let denied = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    // The number is the first word of what a filter sees (seccomp_data, seccomp(2)).
    let program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32_BIT, 1),
        step(libc::BPF_RET | libc::BPF_K, denied, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

#[cfg(not(target_arch = "x86_64"))]
fn deny_x32() -> io::Result<()> {
    Ok(())
}

/// Matches `socket(domain, …)` for every domain that is not allowed.
fn other_families(network: Network) -> io::Result<Rule> {
    let allowed: &[i32] = match network {
        Network::Unix => &[libc::AF_UNIX],
        Network::Internet => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6],
    };
    rule(
        allowed
            .iter()
            .map(|family| condition(0, Len::Dword, Op::Ne, u64::from(family.unsigned_abs())))
            .collect::<io::Result<_>>()?,
    )
}

fn condition(argument: u8, len: Len, op: Op, value: u64) -> io::Result<Condition> {
    Condition::new(argument, len, op, value).map_err(io::Error::other)
}

fn rule(conditions: Vec<Condition>) -> io::Result<Rule> {
    Rule::new(conditions).map_err(io::Error::other)
}

fn install(denied: Rules, errno: i32) -> io::Result<()> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(denied, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()), arch)
        .map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
