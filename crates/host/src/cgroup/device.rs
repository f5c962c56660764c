//! Device rules: folded for v1's `devices.allow` and `devices.deny`, and as the BPF program that v2 asks on each access.
//! Rules are in the order of the OCI spec, the last that matches wins.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::sys;

/// Kind of device a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Both kinds, every number, every access.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// One device rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Which kind.
    pub kind: DeviceKind,
    /// Major number, `None` for any.
    pub major: Option<u32>,
    /// Minor number, `None` for any.
    pub minor: Option<u32>,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
    /// May make nodes.
    pub mknod: bool,
}

impl DeviceRule {
    /// A rule for character devices from a list like `rwm`.
    pub fn char(allow: bool, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        Self::new(allow, DeviceKind::Char, major, minor, access)
    }

    /// A rule from its parts, with an access list like `rwm`.
    pub fn new(allow: bool, kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        let has = |letter| access.contains(letter);
        Self { allow, kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }

    /// Says whether the rule is about everything at once.
    fn is_total(&self) -> bool {
        let all_access = self.read && self.write && self.mknod;
        self.kind == DeviceKind::All && all_access && self.major.is_none() && self.minor.is_none()
    }

    fn access(&self) -> u32 {
        u32::from(self.mknod) | u32::from(self.read) << 1 | u32::from(self.write) << 2
    }

    /// The rule as v1 writes it.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            DeviceKind::All => "a",
            DeviceKind::Char => "c",
            DeviceKind::Block => "b",
        };
        let access: String = [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')]
            .iter()
            .filter(|a| a.0)
            .map(|a| a.1)
            .collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// The rules that still matter: everything up to the last total one is replaced by it.
fn fold(rules: &[DeviceRule]) -> (bool, Vec<&DeviceRule>) {
    let last_total = rules.iter().rposition(DeviceRule::is_total);
    // Nothing is denied until a rule says so (a v1 group begins as its parent is).
    let default_allow = last_total.is_none_or(|index| rules[index].allow);
    let mut rest: Vec<&DeviceRule> = Vec::new();
    for rule in &rules[last_total.map_or(0, |index| index + 1)..] {
        if !rest.contains(&rule) {
            rest.push(rule);
        }
    }
    // What only repeats the default, with no exception before it, says nothing.
    let first_exception = rest.iter().position(|rule| rule.allow != default_allow).unwrap_or(rest.len());
    (default_allow, rest.split_off(first_exception))
}

/// False when the rules allow everything, so that no device control is needed at all.
pub(super) fn restricts(rules: &[DeviceRule]) -> bool {
    let (default_allow, rest) = fold(rules);
    !default_allow || !rest.is_empty()
}

/// Lines for v1, in the order in which they are written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct V1Lines {
    pub(super) deny: Vec<String>,
    pub(super) allow: Vec<String>,
    pub(super) deny_after: Vec<String>,
}

/// The fewest writes that give a v1 group these rules.
pub(super) fn v1_lines(rules: &[DeviceRule]) -> V1Lines {
    let (default_allow, rest) = fold(rules);
    let mut lines = V1Lines::default();
    if default_allow {
        lines.allow.push("a".to_owned());
    } else {
        lines.deny.push("a".to_owned());
    }
    for rule in rest {
        if rule.allow {
            lines.allow.push(rule.line());
        } else {
            lines.deny_after.push(rule.line());
        }
    }
    lines
}

/// One BPF instruction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register, source register << 4.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Immediate value.
    pub immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER_32: u8 = 0xbc;
const MOVE_IMMEDIATE: u8 = 0xb7;
const AND_IMMEDIATE_32: u8 = 0x54;
const SHIFT_RIGHT_IMMEDIATE_32: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;
const EMPTY: Instruction = instruction(0, 0, 0, 0);

/// The program for `BPF_PROG_TYPE_CGROUP_DEVICE`: r2 = kind, r3 = access asked for, r4 = major, r5 = minor; r0 = 1 allows.
pub fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let (default_allow, rest) = fold(rules);
    let mut program = vec![
        instruction(LOAD_WORD, 0x12, 0, 0), // r2 = access_type
        instruction(MOVE_REGISTER_32, 0x23, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE_32, 0x03, 0, 16), // r3 = access
        instruction(AND_IMMEDIATE_32, 0x02, 0, 0xffff),     // r2 = kind
        instruction(LOAD_WORD, 0x14, 4, 0),                 // r4 = major
        instruction(LOAD_WORD, 0x15, 8, 0),                 // r5 = minor
    ];
    // Asked from the last to the first: the first that matches here decides.
    for rule in rest.iter().rev() {
        program.extend(block(rule));
    }
    program
        .extend([instruction(MOVE_IMMEDIATE, 0x00, 0, i32::from(default_allow)), instruction(EXIT, 0, 0, 0)]);
    program
}

/// Jumps behind itself unless the rule matches.
fn block(rule: &DeviceRule) -> Vec<Instruction> {
    let mut block = Vec::new();
    let kind = match rule.kind {
        DeviceKind::All => None,
        DeviceKind::Block => Some(1),
        DeviceKind::Char => Some(2),
    };
    if let Some(kind) = kind {
        block.push(instruction(JUMP_NOT_EQUAL, 0x02, 0, kind));
    }
    let access = rule.access();
    if access != 7 {
        block.push(instruction(MOVE_REGISTER_32, 0x31, 0, 0)); // r1 = access
        if rule.allow {
            // An allow rule must cover everything that is asked for; a deny rule stops whatever it touches.
            block.push(instruction(AND_IMMEDIATE_32, 0x01, 0, (!access & 7) as i32));
            block.push(instruction(JUMP_NOT_EQUAL, 0x01, 0, 0));
        } else {
            block.push(instruction(AND_IMMEDIATE_32, 0x01, 0, access as i32));
            block.push(instruction(JUMP_EQUAL, 0x01, 0, 0));
        }
    }
    for (register, number) in [(0x04, rule.major), (0x05, rule.minor)] {
        if let Some(number) = number {
            block.push(instruction(JUMP_NOT_EQUAL, register, 0, number as i32));
        }
    }
    block.extend([instruction(MOVE_IMMEDIATE, 0x00, 0, i32::from(rule.allow)), instruction(EXIT, 0, 0, 0)]);
    let length = block.len();
    for (index, jump) in block.iter_mut().enumerate() {
        if matches!(jump.code, JUMP_NOT_EQUAL | JUMP_EQUAL) {
            jump.offset = (length - index - 1) as i16;
        }
    }
    block
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
}

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// Loads the program and attaches it to a v2 directory; it lives as long as the directory.
pub(super) fn attach(directory: &OwnedFd, rules: &[DeviceRule]) -> io::Result<()> {
    let mut program = program(rules);
    // The kernel refuses an empty program, and the pointer must stay valid through the call.
    program.reserve(1);
    debug_assert_ne!(program.first(), Some(&EMPTY));
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        expected_attach: ATTACH_CGROUP_DEVICE,
        ..Load::default()
    };
    let loaded = sys::own_fd(sys::bpf(PROG_LOAD, &mut load)?);
    let directory = rustix::fs::openat(
        directory,
        ".",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut attach = Attach {
        target: directory.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replace: 0,
    };
    sys::bpf(PROG_ATTACH, &mut attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deny_all() -> DeviceRule {
        DeviceRule::new(false, DeviceKind::All, None, None, "rwm")
    }

    #[test]
    fn the_standard_rules_fold_into_one_deny_and_the_allowed_devices() {
        let null = DeviceRule::char(true, Some(1), Some(3), "rwm");
        let rules = [deny_all(), deny_all(), null.clone(), DeviceRule::char(true, None, None, "m"), null];
        let lines = v1_lines(&rules);
        assert_eq!(lines.deny, ["a"]);
        assert_eq!(lines.allow, ["c 1:3 rwm", "c *:* m"]);
        assert!(lines.deny_after.is_empty());
    }

    #[test]
    fn allow_everything_needs_no_device_control() {
        let allow_all = DeviceRule::new(true, DeviceKind::All, None, None, "rwm");
        assert!(!restricts(&[deny_all(), allow_all.clone()]));
        assert!(!restricts(&[allow_all.clone(), DeviceRule::char(true, Some(1), Some(3), "rwm")]));
        assert!(restricts(&[allow_all, deny_all()]));
    }

    #[test]
    fn the_program_decides_by_the_last_rule_that_matches() {
        let rules = [
            deny_all(),
            DeviceRule::char(true, Some(1), None, "rw"),
            DeviceRule::char(false, Some(1), Some(5), "w"),
            DeviceRule::new(true, DeviceKind::Block, Some(8), Some(0), "r"),
        ];
        let table = [
            (2, 2, 1, 3, true),  // char 1:3 read
            (2, 6, 1, 3, true),  // read + write
            (2, 7, 1, 3, false), // mknod too: the rule does not cover it
            (2, 2, 1, 5, true),
            (2, 4, 1, 5, false), // denied again
            (1, 2, 8, 0, true),
            (1, 4, 8, 0, false),
            (2, 2, 8, 0, false), // another kind
        ];
        let program = program(&rules);
        for (kind, access, major, minor, allowed) in table {
            let outcome = interpret(&program, [access << 16 | kind, major, minor]);
            assert_eq!(outcome, u64::from(allowed), "kind {kind} access {access} {major}:{minor}");
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn the_kernel_accepts_the_program_and_enforces_it() {
        let directory =
            std::path::PathBuf::from(format!("/sys/fs/cgroup/unified/pw-dev-{}", std::process::id()));
        let base = if directory.parent().unwrap().exists() {
            directory
        } else {
            format!("/sys/fs/cgroup/pw-dev-{}", std::process::id()).into()
        };
        std::fs::create_dir(&base).unwrap();
        let handle = super::super::file::open_directory(&base).unwrap();
        let rules = [deny_all(), DeviceRule::char(true, Some(1), Some(3), "rwm")];
        let attached = attach(&handle, &rules);
        let opened = std::thread::spawn({
            let base = base.clone();
            move || {
                #[expect(clippy::disallowed_methods, reason = "a test starts a shell inside the cgroup")]
                let output = std::process::Command::new("/bin/sh")
                    .args([
                        "-c",
                        "echo $$ > $0/cgroup.procs; : < /dev/null && echo null; : < /dev/zero && echo zero",
                    ])
                    .arg(&base)
                    .output();
                output
            }
        });
        let output = opened.join().unwrap().unwrap();
        std::fs::remove_dir(&base).unwrap();
        attached.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "null\n");
    }

    /// Runs the few operations the program uses.
    fn interpret(program: &[Instruction], context: [u32; 3]) -> u64 {
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        loop {
            let i = program[at];
            let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            at += 1;
            match i.code {
                LOAD_WORD => registers[dst] = u64::from(context[i.offset as usize / 4]),
                MOVE_REGISTER_32 => registers[dst] = u64::from(registers[src] as u32),
                MOVE_IMMEDIATE => registers[dst] = i.immediate as u64,
                AND_IMMEDIATE_32 => registers[dst] = u64::from(registers[dst] as u32 & i.immediate as u32),
                SHIFT_RIGHT_IMMEDIATE_32 => registers[dst] = u64::from(registers[dst] as u32 >> i.immediate),
                JUMP_NOT_EQUAL if registers[dst] != i.immediate as u64 => at += i.offset as usize,
                JUMP_EQUAL if registers[dst] == i.immediate as u64 => at += i.offset as usize,
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0],
                code => panic!("code {code:#x}"),
            }
        }
    }
}
