//! Filters by an interpreter of classic BPF, and once in the kernel.

use oci_spec::runtime::LinuxSeccomp;
use serde_json::json;

use super::compile::{ALLOW, AND, EQUAL, GREATER, JUMP, KILL_PROCESS, LOAD, NOT_BELOW, Op, RETURN, compile};
use super::{runtime_default, tables};
use crate::plan::capability_mask;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_profile_allows_ordinary_calls_and_denies_the_rest() {
    let profile = runtime_default(0);
    let table = [
        ("read", [0; 6], ALLOW),
        ("execve", [0; 6], ALLOW),
        ("arch_prctl", [0; 6], ALLOW),
        ("ptrace", [0; 6], ALLOW),
        ("mount", [0; 6], EPERM),
        ("bpf", [0; 6], EPERM),
        ("reboot", [0; 6], EPERM),
        ("setns", [0; 6], EPERM),
        ("clone3", [0; 6], ENOSYS),
        ("clone", [0x11, 0, 0, 0, 0, 0], ALLOW),
        ("clone", [0x1000_0000, 0, 0, 0, 0, 0], EPERM),
        ("socket", [libc::AF_INET as u64, 0, 0, 0, 0, 0], ALLOW),
        ("socket", [libc::AF_NFC as u64, 0, 0, 0, 0, 0], ALLOW),
        ("socket", [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0], EPERM),
        ("socket", [libc::AF_ALG as u64, 0, 0, 0, 0, 0], EPERM),
        ("socket", [46, 0, 0, 0, 0, 0], EPERM),
        ("personality", [0x20008, 0, 0, 0, 0, 0], ALLOW),
        ("personality", [0x40000, 0, 0, 0, 0, 0], EPERM),
    ];
    for (name, arguments, outcome) in table {
        check(&profile, X86_64, number(tables::X86_64, name), arguments, outcome);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn capabilities_open_their_calls() {
    let table = [
        ("SYS_ADMIN", "mount", EPERM),
        ("SYS_ADMIN", "clone3", ENOSYS),
        ("SYS_BOOT", "reboot", EPERM),
        ("SYS_TIME", "clock_settime", EPERM),
        ("BPF", "bpf", EPERM),
        ("DAC_READ_SEARCH", "open_by_handle_at", EPERM),
    ];
    for (capability, call, without) in table {
        let call = number(tables::X86_64, call);
        check(&runtime_default(0), X86_64, call, [0; 6], without);
        check(&runtime_default(capability_mask(capability).unwrap()), X86_64, call, [0; 6], ALLOW);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn each_architecture_has_its_own_numbers_and_unlisted_ones_are_killed() {
    let profile = runtime_default(0);
    check(&profile, I386, number(tables::X86, "read"), [0; 6], ALLOW);
    check(&profile, I386, number(tables::X86, "mount"), [0; 6], EPERM);
    check(&profile, X86_64, 0x4000_0000 | number(tables::X86_64, "read"), [0; 6], ENOSYS);
    check(&profile, 0xc000_00b7, 63, [0; 6], KILL_PROCESS);
    let native_only = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    check(&native_only, X86_64, 1, [0; 6], ALLOW);
    check(&native_only, I386, 1, [0; 6], KILL_PROCESS);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_younger_than_the_profile_do_not_exist_for_it() {
    let profile = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW" }],
    }));
    check(&profile, X86_64, number(tables::X86_64, "openat2") - 1, [0; 6], EPERM);
    check(&profile, X86_64, number(tables::X86_64, "openat2") + 1, [0; 6], ENOSYS);
    let permissive = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["openat2"], "action": "SCMP_ACT_KILL_PROCESS" }],
    }));
    check(&permissive, X86_64, number(tables::X86_64, "openat2"), [0; 6], KILL_PROCESS);
    check(&permissive, X86_64, 10_000, [0; 6], ALLOW);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_operator_compares_all_64_bits() {
    const BIG: u64 = 0x0000_0002_0000_0005;
    let values = [0, 5, 6, 4, BIG - 1, BIG, BIG + 1, 0x0000_0003_0000_0000, 0x0000_0001_ffff_ffff, u64::MAX];
    type Holds = fn(u64) -> bool;
    let table: [(&str, Holds); 6] = [
        ("SCMP_CMP_EQ", |v| v == BIG),
        ("SCMP_CMP_NE", |v| v != BIG),
        ("SCMP_CMP_LT", |v| v < BIG),
        ("SCMP_CMP_LE", |v| v <= BIG),
        ("SCMP_CMP_GT", |v| v > BIG),
        ("SCMP_CMP_GE", |v| v >= BIG),
    ];
    for (operator, holds) in table {
        let profile = filter(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{ "index": 3, "value": BIG, "op": operator }] }],
        }));
        for value in values {
            let outcome = if holds(value) { 0x0003_0000 } else { ALLOW };
            check(&profile, X86_64, 0, [9, 9, 9, value, 9, 9], outcome);
        }
    }
    let masked = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_LOG", "args":
            [{ "index": 5, "value": 0xff_0000_000f_u64, "valueTwo": 0x01_0000_0002_u64, "op": "SCMP_CMP_MASKED_EQ" }] }],
    }));
    check(&masked, X86_64, 0, [0, 0, 0, 0, 0, 0x8801_0000_0ff2], 0x7ffc_0000);
    check(&masked, X86_64, 0, [0, 0, 0, 0, 0, 0x8802_0000_0ff2], ALLOW);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn conditions_hold_together_unless_they_are_about_the_same_argument() {
    let rule = |args| {
        filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["write"], "action": "SCMP_ACT_ALLOW", "args": args }],
        }))
    };
    let both = rule(
        json!([{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 1, "value": 2, "op": "SCMP_CMP_EQ" }]),
    );
    check(&both, X86_64, 1, [1, 2, 0, 0, 0, 0], ALLOW);
    check(&both, X86_64, 1, [1, 3, 0, 0, 0, 0], EPERM);
    let either = rule(
        json!([{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 2, "op": "SCMP_CMP_EQ" }]),
    );
    check(&either, X86_64, 1, [2, 0, 0, 0, 0, 0], ALLOW);
    check(&either, X86_64, 1, [3, 0, 0, 0, 0, 0], EPERM);
}

#[test]
fn what_cannot_be_expressed_is_refused_by_name() {
    let notify = filter(json!({ "defaultAction": "SCMP_ACT_NOTIFY" }));
    assert!(super::compile(&notify).unwrap_err().to_string().contains("SCMP_ACT_NOTIFY"));
    let listener = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x" }));
    assert!(super::compile(&listener).unwrap_err().to_string().contains("listenerPath"));
}

#[test]
fn every_program_is_one_the_kernel_could_load() {
    for capabilities in [0, u64::MAX] {
        let program = compile(&runtime_default(capabilities)).unwrap();
        assert!(program.len() < 1500, "{}", program.len());
        for (at, op) in program.iter().enumerate() {
            let targets = match op.code {
                JUMP => vec![at + 1 + op.k as usize],
                EQUAL | GREATER | NOT_BELOW => vec![at + 1 + usize::from(op.jt), at + 1 + usize::from(op.jf)],
                _ => vec![],
            };
            assert!(targets.iter().all(|target| *target < program.len()), "{at}: {op:?}");
        }
        assert_eq!(program.last().unwrap().code, RETURN);
    }
}

#[test]
#[ignore = "needs root"]
fn the_kernel_gives_the_errno_of_the_profile() {
    let bytes = super::compile(&runtime_default(0)).unwrap();
    // A filter belongs to the thread that installs it.
    let outcome = std::thread::spawn(move || {
        host::sys::install_seccomp(&bytes, super::default_flags()).unwrap();
        let namespaces = host::namespace::unshare(&[host::namespace::Namespace::Uts]).unwrap_err();
        let vsock =
            rustix::net::socket(rustix::net::AddressFamily::VSOCK, rustix::net::SocketType::STREAM, None)
                .unwrap_err();
        let unix =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None)
                .is_ok();
        (namespaces.raw_os_error(), vsock.raw_os_error(), unix)
    });
    assert_eq!(outcome.join().unwrap(), (Some(libc::EPERM), libc::EPERM, true));
}

fn filter(value: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn number(table: tables::Table, name: &str) -> u32 {
    table.iter().find(|(known, _)| *known == name).unwrap().1
}

fn check(profile: &LinuxSeccomp, architecture: u32, number: u32, arguments: [u64; 6], expect: u32) {
    let outcome = interpret(&compile(profile).unwrap(), architecture, number, arguments);
    assert_eq!(outcome, expect, "call {number} of {architecture:#x} with {arguments:x?}: {outcome:#x}");
}

/// Runs a program on `struct seccomp_data`.
fn interpret(program: &[Op], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0_u8; 64];
    data[0..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&architecture.to_ne_bytes());
    for (index, argument) in arguments.iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&argument.to_ne_bytes());
    }
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let op = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { op.jt } else { op.jf });
        match op.code {
            LOAD => {
                accumulator = u32::from_ne_bytes(data[op.k as usize..op.k as usize + 4].try_into().unwrap())
            }
            AND => accumulator &= op.k,
            JUMP => at += op.k as usize,
            EQUAL => at += branch(accumulator == op.k),
            GREATER => at += branch(accumulator > op.k),
            NOT_BELOW => at += branch(accumulator >= op.k),
            RETURN => return op.k,
            code => panic!("code {code:#x}"),
        }
    }
}
