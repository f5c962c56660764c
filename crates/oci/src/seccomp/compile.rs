//! From an OCI filter to classic BPF: dispatch by architecture, then a binary search over ranges of call numbers, then arguments.
//!
//! A search tree instead of a list: the kernel runs a new filter once for every call number to find those it may always allow, so the
//! depth of the program is paid for at each container start.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::SeccompError;
use super::tables::{self, Table};

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) code: u16,
    pub(super) jt: u8,
    pub(super) jf: u8,
    pub(super) k: u32,
}

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const EQUAL: u16 = 0x15;
pub(super) const GREATER: u16 = 0x25;
pub(super) const NOT_BELOW: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// Call numbers of x32 carry this bit; no supported kernel configuration needs them.
const X32_BIT: u32 = 0x4000_0000;
const MAX_OPS: usize = 4096;
/// Marks a jump whose distance is filled in when the block is complete.
const TO_NEXT: u8 = u8::MAX;

struct Architecture {
    listed_as: Arch,
    audit: u32,
    table: Table,
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Architecture; 2] = [
    Architecture { listed_as: Arch::ScmpArchX86_64, audit: 0xc000_003e, table: tables::X86_64 },
    Architecture { listed_as: Arch::ScmpArchX86, audit: 0x4000_0003, table: tables::X86 },
];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Architecture; 2] = [
    Architecture { listed_as: Arch::ScmpArchAarch64, audit: 0xc000_00b7, table: tables::AARCH64 },
    Architecture { listed_as: Arch::ScmpArchArm, audit: 0x4000_0028, table: tables::ARM },
];

/// What happens on one call number: the first alternative whose conditions all hold, else the last action.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Behaviour {
    alternatives: Vec<(Vec<LinuxSeccompArg>, u32)>,
    otherwise: u32,
}

pub(super) fn compile(seccomp: &LinuxSeccomp) -> Result<Vec<Op>, SeccompError> {
    if seccomp.listener_path().is_some() {
        return Err(SeccompError::Unsupported("listenerPath".to_owned()));
    }
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let listed = seccomp.architectures().as_deref().unwrap_or(&[]);
    let mut program = vec![Op { code: LOAD, jt: 0, jf: 0, k: ARCHITECTURE_OFFSET }];
    for (index, architecture) in ARCHITECTURES.iter().enumerate() {
        // The machine's own architecture always counts.
        if index > 0 && !listed.contains(&architecture.listed_as) {
            continue;
        }
        let block = architecture_block(architecture, seccomp, default)?;
        program.push(Op { code: EQUAL, jt: 1, jf: 0, k: architecture.audit });
        program.push(Op { code: JUMP, jt: 0, jf: 0, k: block.len() as u32 });
        program.extend(block);
    }
    program.push(return_op(KILL_PROCESS));
    if program.len() > MAX_OPS {
        return Err(SeccompError::Unsupported(format!(
            "filter of {} instructions (at most {MAX_OPS})",
            program.len()
        )));
    }
    Ok(program)
}

fn architecture_block(
    architecture: &Architecture,
    seccomp: &LinuxSeccomp,
    default: u32,
) -> Result<Vec<Op>, SeccompError> {
    let behaviours = behaviours(architecture, seccomp, default)?;
    let ranges = ranges(&behaviours, seccomp, default);
    let mut block = vec![Op { code: LOAD, jt: 0, jf: 0, k: NUMBER_OFFSET }];
    block.extend(search(&ranges));
    Ok(block)
}

/// What the rules say about each call number they name. Names this architecture does not have are skipped, as every profile has some.
fn behaviours(
    architecture: &Architecture,
    seccomp: &LinuxSeccomp,
    default: u32,
) -> Result<BTreeMap<u32, Behaviour>, SeccompError> {
    let mut behaviours: BTreeMap<u32, Behaviour> = BTreeMap::new();
    let mut unconditional: BTreeMap<u32, u32> = BTreeMap::new();
    for rule in seccomp.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let alternatives = alternatives(rule)?;
        for name in rule.names() {
            let Some(number) = number(architecture.table, name) else { continue };
            let behaviour = behaviours
                .entry(number)
                .or_insert_with(|| Behaviour { alternatives: Vec::new(), otherwise: default });
            if alternatives.is_empty() {
                unconditional.entry(number).or_insert(action);
            } else {
                behaviour.alternatives.extend(alternatives.iter().map(|all| (all.clone(), action)));
            }
        }
    }
    for (number, action) in unconditional {
        if let Some(behaviour) = behaviours.get_mut(&number) {
            behaviour.otherwise = action;
            // Alternatives with the same outcome are not worth asking.
            behaviour.alternatives.retain(|(_, other)| *other != action);
        }
    }
    Ok(behaviours)
}

/// Conditions of a rule hold together, unless one argument has several: then each is an alternative (as runc has it).
fn alternatives(rule: &LinuxSyscall) -> Result<Vec<Vec<LinuxSeccompArg>>, SeccompError> {
    let arguments = rule.args().as_deref().unwrap_or(&[]);
    if let Some(argument) = arguments.iter().find(|argument| argument.index() > 5) {
        return Err(SeccompError::Unsupported(format!("argument index {}", argument.index())));
    }
    let repeated =
        (0..6).any(|index| arguments.iter().filter(|argument| argument.index() == index).count() > 1);
    Ok(match arguments {
        [] => Vec::new(),
        _ if repeated => arguments.iter().map(|argument| vec![*argument]).collect(),
        _ => vec![arguments.to_vec()],
    })
}

fn number(table: Table, name: &str) -> Option<u32> {
    table.binary_search_by(|(known, _)| known.cmp(&name)).ok().map(|index| table[index].1)
}

/// Covers every call number: (first number, behaviour), neighbours that behave the same merged.
fn ranges(
    behaviours: &BTreeMap<u32, Behaviour>,
    seccomp: &LinuxSeccomp,
    default: u32,
) -> Vec<(u32, Behaviour)> {
    let plain = |action| Behaviour { alternatives: Vec::new(), otherwise: action };
    let no_such_call = ERRNO | libc::ENOSYS as u32;
    // Calls younger than the profile do not exist for it: a program that probes for one falls back, where EPERM would stop it.
    let unknown = match seccomp.default_action() {
        LinuxSeccompAction::ScmpActAllow
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActTrace => default,
        _ if behaviours.is_empty() => default,
        _ => no_such_call,
    };
    let mut ranges: Vec<(u32, Behaviour)> = Vec::new();
    let mut push = |start: u32, behaviour: Behaviour| {
        if ranges.last().is_none_or(|(_, last)| *last != behaviour) {
            ranges.push((start, behaviour));
        }
    };
    let mut next = 0;
    for (number, behaviour) in behaviours {
        if *number > next {
            push(next, plain(default));
        }
        push(*number, behaviour.clone());
        next = number + 1;
    }
    push(next, plain(unknown));
    if cfg!(target_arch = "x86_64") && next < X32_BIT {
        push(X32_BIT, plain(no_such_call));
    }
    ranges
}

/// A binary search tree over the ranges; the call number is in the accumulator.
fn search(ranges: &[(u32, Behaviour)]) -> Vec<Op> {
    if let [(_, behaviour)] = ranges {
        return decide(behaviour);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let low = search(low);
    let first_high = high.first().map_or(0, |(start, _)| *start);
    let mut ops = match u8::try_from(low.len()) {
        Ok(distance) => vec![Op { code: NOT_BELOW, jt: distance, jf: 0, k: first_high }],
        Err(_) => vec![
            Op { code: NOT_BELOW, jt: 0, jf: 1, k: first_high },
            Op { code: JUMP, jt: 0, jf: 0, k: low.len() as u32 },
        ],
    };
    ops.extend(low);
    ops.extend(search(high));
    ops
}

fn decide(behaviour: &Behaviour) -> Vec<Op> {
    let mut ops = Vec::new();
    for (conditions, action) in &behaviour.alternatives {
        let mut block: Vec<Op> = conditions.iter().flat_map(condition).collect();
        block.push(return_op(*action));
        let length = block.len();
        for (index, op) in block.iter_mut().enumerate() {
            // At most six conditions of six instructions: the distance fits.
            let distance = (length - index - 1) as u8;
            if op.jt == TO_NEXT {
                op.jt = distance;
            }
            if op.jf == TO_NEXT {
                op.jf = distance;
            }
        }
        ops.extend(block);
    }
    ops.push(return_op(behaviour.otherwise));
    ops
}

/// Falls through when the condition holds, else leaves for the next alternative. Arguments are compared in halves of 32 bits.
fn condition(argument: &LinuxSeccompArg) -> Vec<Op> {
    let low_at = ARGUMENTS_OFFSET + 8 * argument.index() as u32;
    let load = |k| Op { code: LOAD, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| Op { code, jt, jf, k };
    let (high, low) = halves(argument.value());
    let (load_low, load_high) = if cfg!(target_endian = "little") {
        (load(low_at), load(low_at + 4))
    } else {
        (load(low_at + 4), load(low_at))
    };
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => {
            vec![load_high, jump(EQUAL, high, 0, TO_NEXT), load_low, jump(EQUAL, low, 0, TO_NEXT)]
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            vec![load_high, jump(EQUAL, high, 0, 2), load_low, jump(EQUAL, low, TO_NEXT, 0)]
        }
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (wanted_high, wanted_low) = halves(argument.value_two().unwrap_or(0));
            let and = |k| Op { code: AND, jt: 0, jf: 0, k };
            vec![
                load_high,
                and(high),
                jump(EQUAL, wanted_high, 0, TO_NEXT),
                load_low,
                and(low),
                jump(EQUAL, wanted_low, 0, TO_NEXT),
            ]
        }
        LinuxSeccompOperator::ScmpCmpGt => above(load_high, load_low, high, jump(GREATER, low, 0, TO_NEXT)),
        LinuxSeccompOperator::ScmpCmpGe => above(load_high, load_low, high, jump(NOT_BELOW, low, 0, TO_NEXT)),
        LinuxSeccompOperator::ScmpCmpLt => below(load_high, load_low, high, jump(NOT_BELOW, low, TO_NEXT, 0)),
        LinuxSeccompOperator::ScmpCmpLe => below(load_high, load_low, high, jump(GREATER, low, TO_NEXT, 0)),
    }
}

fn above(load_high: Op, load_low: Op, high: u32, compare_low: Op) -> Vec<Op> {
    vec![
        load_high,
        Op { code: GREATER, jt: 3, jf: 0, k: high },
        Op { code: EQUAL, jt: 0, jf: TO_NEXT, k: high },
        load_low,
        compare_low,
    ]
}

fn below(load_high: Op, load_low: Op, high: u32, compare_low: Op) -> Vec<Op> {
    vec![
        load_high,
        Op { code: NOT_BELOW, jt: 0, jf: 3, k: high },
        Op { code: EQUAL, jt: 0, jf: TO_NEXT, k: high },
        load_low,
        compare_low,
    ]
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn return_op(k: u32) -> Op {
    Op { code: RETURN, jt: 0, jf: 0, k }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    // errnoRet without a value is EPERM (OCI runtime spec, seccomp).
    let errno = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => ERRNO | errno,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY".to_owned()));
        }
    })
}
