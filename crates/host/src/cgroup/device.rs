//! Device rules: settled into one about everything and its exceptions, as the lines of v1's `devices.allow` and `devices.deny`, and as
//! the BPF program that v2 asks on each access. Which devices a container has is not decided here.

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

/// Reading, writing and making nodes, as the bits that BPF programs see.
const ALL_ACCESS: u32 = 7;

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
        self.kind == DeviceKind::All
            && self.access() == ALL_ACCESS
            && self.major.is_none()
            && self.minor.is_none()
    }

    fn access(&self) -> u32 {
        u32::from(self.mknod) | u32::from(self.read) << 1 | u32::from(self.write) << 2
    }

    fn set_access(&mut self, access: u32) {
        (self.mknod, self.read, self.write) = (access & 1 != 0, access & 2 != 0, access & 4 != 0);
    }

    /// Whether every device that `other` is about is one of this rule's.
    fn covers(&self, other: &Self) -> bool {
        let number = |own: Option<u32>, its: Option<u32>| own.is_none() || own == its;
        (self.kind == DeviceKind::All || self.kind == other.kind)
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }

    /// Whether some device is both this rule's and `other`'s.
    fn meets(&self, other: &Self) -> bool {
        let number = |one: Option<u32>, two: Option<u32>| one.is_none() || two.is_none() || one == two;
        let all = self.kind == DeviceKind::All || other.kind == DeviceKind::All;
        (all || self.kind == other.kind) && number(self.major, other.major) && number(self.minor, other.minor)
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

/// A rule that changes a part of what an earlier one says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rule {part:?} is about a part of what {whole:?} is about, and cgroups know no exceptions of exceptions"
)]
pub struct PartOfRule {
    part: String,
    whole: String,
}

/// The fewest rules that mean the same: one about everything, then its exceptions, each about other devices. `rules` are in the order of
/// the OCI spec, and before the first of them nothing is allowed.
///
/// A rule that says again what holds for everything takes earlier exceptions back. v1 would take back those about exactly the same
/// devices only, and ignore a rule about a part of them: such a rule is an error.
pub fn settle(rules: &[DeviceRule]) -> Result<Vec<DeviceRule>, PartOfRule> {
    let mut allowed = false;
    let mut exceptions: Vec<DeviceRule> = Vec::new();
    for rule in rules {
        if rule.is_total() {
            allowed = rule.allow;
            exceptions.clear();
        } else if rule.allow == allowed {
            take_back(&mut exceptions, rule)?;
        } else {
            add(&mut exceptions, rule);
        }
    }
    let total = DeviceRule::new(allowed, DeviceKind::All, None, None, "rwm");
    Ok(std::iter::once(total).chain(exceptions).collect())
}

fn add(exceptions: &mut Vec<DeviceRule>, rule: &DeviceRule) {
    match exceptions.iter_mut().find(|other| other.covers(rule) && rule.covers(other)) {
        Some(same) => same.set_access(same.access() | rule.access()),
        None => exceptions.push(rule.clone()),
    }
}

/// A denial takes back what is allowed of its devices. A permission takes back a denial of exactly its devices: what was denied more
/// precisely stays so.
fn take_back(exceptions: &mut Vec<DeviceRule>, rule: &DeviceRule) -> Result<(), PartOfRule> {
    for exception in exceptions.iter_mut() {
        if !exception.meets(rule) || exception.access() & rule.access() == 0 {
            continue;
        }
        match (rule.covers(exception), exception.covers(rule)) {
            (true, false) | (false, false) if rule.allow => {}
            (true, _) => exception.set_access(exception.access() & !rule.access()),
            (false, _) => return Err(PartOfRule { part: rule.line(), whole: exception.line() }),
        }
    }
    exceptions.retain(|exception| exception.access() != 0);
    Ok(())
}

/// What holds for everything, and the rules after it. Where no rule is about everything, all is allowed that no rule denies.
fn split(rules: &[DeviceRule]) -> (bool, &[DeviceRule]) {
    match rules.iter().rposition(DeviceRule::is_total) {
        Some(index) => (rules[index].allow, &rules[index + 1..]),
        None => (true, rules),
    }
}

/// False when the rules allow everything, so that no device control is needed at all.
pub(super) fn restricts(rules: &[DeviceRule]) -> bool {
    !matches!(split(rules), (true, []))
}

/// A file of v1 and the lines for it.
pub(super) type V1Lines = (&'static str, Vec<String>);

/// What gives a v1 group these rules, in the order in which it is to be written.
pub(super) fn v1_lines(rules: &[DeviceRule]) -> Vec<V1Lines> {
    let mut files: Vec<V1Lines> = Vec::new();
    for rule in rules {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        match files.last_mut().filter(|(last, _)| *last == file) {
            Some((_, lines)) => lines.push(rule.line()),
            None => files.push((file, vec![rule.line()])),
        }
    }
    files
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
    let (default_allow, rest) = split(rules);
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
    if access != ALL_ACCESS {
        block.push(instruction(MOVE_REGISTER_32, 0x31, 0, 0)); // r1 = access
        if rule.allow {
            // An allow rule must cover everything that is asked for; a deny rule stops whatever it touches.
            block.push(instruction(AND_IMMEDIATE_32, 0x01, 0, (!access & ALL_ACCESS) as i32));
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

    fn allow_all() -> DeviceRule {
        DeviceRule::new(true, DeviceKind::All, None, None, "rwm")
    }

    /// Rules as lines, `+` for those that allow.
    fn rules(lines: &str) -> Vec<DeviceRule> {
        let parse = |line: &str| {
            let (sign, rest) = line.split_at(1);
            let mut words = rest.split([' ', ':']);
            let kind = match words.next().unwrap() {
                "a" => DeviceKind::All,
                "b" => DeviceKind::Block,
                _ => DeviceKind::Char,
            };
            let mut number = || words.next().unwrap().parse().ok();
            let (major, minor) = (number(), number());
            DeviceRule::new(sign == "+", kind, major, minor, words.next().unwrap())
        };
        lines.split(", ").map(parse).collect()
    }

    fn text(rules: &[DeviceRule]) -> String {
        let sign = |rule: &DeviceRule| if rule.allow { '+' } else { '-' };
        let lines: Vec<String> = rules.iter().map(|rule| format!("{}{}", sign(rule), rule.line())).collect();
        lines.join(", ")
    }

    #[test]
    fn rules_settle_into_one_about_everything_and_its_exceptions() {
        for (given, expect) in [
            ("+c 1:3 rwm", "-a *:* rwm, +c 1:3 rwm"),
            ("-a *:* rwm, +c 1:3 r, -a *:* rwm, +c 1:5 rwm", "-a *:* rwm, +c 1:5 rwm"),
            // Nothing but the same again.
            ("-c 1:3 rwm, +c 1:5 rwm, +c 1:5 rwm", "-a *:* rwm, +c 1:5 rwm"),
            ("+a *:* rwm, +c *:* m, +c 1:3 rwm", "+a *:* rwm"),
            // One exception for each kind of devices, with all of its access.
            ("+c 1:3 r, +b 1:3 r, +c 1:3 wm", "-a *:* rwm, +c 1:3 rwm, +b 1:3 r"),
            // The last one that is about a device wins.
            ("+c 1:3 rwm, -c 1:3 w", "-a *:* rwm, +c 1:3 rm"),
            ("+c 1:3 rwm, -c 1:3 rwm", "-a *:* rwm"),
            ("-c 1:3 rwm, +c 1:3 rwm", "-a *:* rwm, +c 1:3 rwm"),
            ("+c 1:3 rwm, -c 1:* rwm, +c 1:5 r", "-a *:* rwm, +c 1:5 r"),
            ("+a *:* rwm, -b 8:0 rwm, +b 8:0 r", "+a *:* rwm, -b 8:0 wm"),
            // What is denied by its number stays denied.
            ("+a *:* rwm, -c 10:229 rwm, +c *:* m", "+a *:* rwm, -c 10:229 rwm"),
            ("+a *:* rwm, -c *:0 rwm, +c 136:* rwm", "+a *:* rwm, -c *:0 rwm"),
        ] {
            assert_eq!(text(&settle(&rules(given)).unwrap()), expect, "{given}");
        }
    }

    #[test]
    fn a_rule_about_a_part_of_an_exception_is_an_error_that_names_both() {
        for given in ["+c 1:* rwm, -c 1:5 w", "+c *:* m, -c 1:* m", "+c 1:* r, -c *:3 r"] {
            settle(&rules(given)).expect_err(given);
        }
        settle(&rules("+c *:* m, -c 1:5 rw")).expect("they are about other access");
        let error = settle(&rules("+a *:* rwm, -c 1:* rwm, +c 1:5 r")).unwrap_err().to_string();
        assert!(error.contains("c 1:5 r\"") && error.contains("c 1:* rwm"), "{error}");
    }

    #[test]
    fn v1_is_told_in_the_order_of_the_rules() {
        let null = DeviceRule::char(true, Some(1), Some(3), "rwm");
        let lines = v1_lines(&settle(&[null, DeviceRule::char(true, None, None, "m")]).unwrap());
        let allow = ["c 1:3 rwm", "c *:* m"].map(str::to_owned).to_vec();
        assert_eq!(lines, [("devices.deny", vec!["a *:* rwm".to_owned()]), ("devices.allow", allow)]);
        let files: Vec<_> = v1_lines(&rules("-a *:* rwm, +c 1:3 r, -c 1:3 r, +c 1:3 w"))
            .into_iter()
            .map(|(file, _)| file)
            .collect();
        assert_eq!(files, ["devices.deny", "devices.allow", "devices.deny", "devices.allow"]);
    }

    #[test]
    fn allow_everything_needs_no_device_control() {
        assert!(!restricts(&[deny_all(), allow_all()]));
        assert!(!restricts(
            &settle(&[allow_all(), DeviceRule::char(true, Some(1), Some(3), "rwm")]).unwrap()
        ));
        assert!(restricts(&[allow_all(), deny_all()]));
        assert!(restricts(&settle(&[]).unwrap()));
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
