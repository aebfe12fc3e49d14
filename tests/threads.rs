//! Large tensors on a system that gives no threads, and in a child of fork. Unix only: both are its ways.
#![cfg(target_os = "linux")]

use std::process::Command;

use lmsd::Tensors;
use lmsd::tensor::{Cpu, CpuTensor, Dtype};

/// Set in the process that runs one test alone.
const ALONE: &str = "LMSD_TEST_ALONE";
/// Address space that each thread of such a process takes, in bytes.
const STACK: u64 = 1 << 30;

/// Whether this process is there for one test only; if not, makes one that is and awaits its end.
fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        // SAFETY: takes no pointer. A process that hangs is ended.
        unsafe { libc::alarm(60) };
        return true;
    }
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args([test, "--exact", "--nocapture"]).env(ALONE, "1").env("RUST_MIN_STACK", STACK.to_string());
    let out = process.output().unwrap();
    assert!(out.status.success(), "{}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    false
}

/// A combination of 24 MiB and the inner product of as much, which take threads where there are some.
fn work() {
    let shape = [4, 1 << 20];
    let ones = CpuTensor::from_f64(Dtype::F32, &shape, &vec![1.0; 4 << 20]).unwrap();
    let mut out = Cpu.alloc(&ones).unwrap();
    Cpu.lincomb(&mut out, &[(2.0, &ones), (1.0, &ones)]).unwrap();
    assert_eq!(Cpu.gram(&[&out]).unwrap(), [9.0 * f64::from(1 << 20); 4]);
}

/// In a process of its own, in which `limit` sees to it that no thread can be made, where the system lets it.
fn works_without_threads(test: &str, limit: impl FnOnce() -> bool) {
    if !alone(test) {
        return;
    }
    if !limit() {
        return eprintln!("SKIPPED {test}: {}", std::io::Error::last_os_error());
    }
    assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "the limit does not hold");
    work();
    work();
}

#[test]
fn without_threads_the_calling_one_works() {
    works_without_threads("without_threads_the_calling_one_works", || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        let limit = libc::rlimit { rlim_cur: pages * 4096 + STACK / 2, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: reads the limit given.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) == 0 }
    });
}

#[test]
fn with_too_many_processes_the_calling_thread_works() {
    works_without_threads("with_too_many_processes_the_calling_thread_works", || {
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads the limit given. It does not bind root, so root becomes nobody in this process.
        unsafe {
            libc::setrlimit(libc::RLIMIT_NPROC, &limit) == 0
                && (libc::getuid() != 0 || libc::setuid(65534) == 0)
        }
    });
}

#[test]
fn in_a_sandbox_without_threads_the_calling_one_works() {
    works_without_threads("in_a_sandbox_without_threads_the_calling_one_works", || {
        let (deny, allow) = (libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, libc::SECCOMP_RET_ALLOW);
        // The number of the system call; that of `clone` and `clone3` is refused.
        let step = |code, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let mut steps = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(equal, 1, 0, libc::SYS_clone as u32),
            step(equal, 0, 1, libc::SYS_clone3 as u32),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, deny),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, allow),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: the program is read before the call returns.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        }
    });
}

#[test]
fn a_child_of_fork_has_threads_of_its_own() {
    if !alone("a_child_of_fork_has_threads_of_its_own") {
        return;
    }
    work();
    // SAFETY: the child does what a host's would: it calls the library, then leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: takes no pointer; the parent's does not count here.
        unsafe { libc::alarm(60) };
        let worked = std::panic::catch_unwind(work).is_ok();
        // SAFETY: the end of the child.
        unsafe { libc::_exit(i32::from(!worked)) };
    }
    let mut status = -1;
    // SAFETY: a child of this process, and room for its status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child ended by signal {} or with an error", status & 0x7f);
}
