//! System call filters: the profile that containerd users get, and a compiler from the OCI value to BPF. It installs nothing.

mod compile;
mod profile;
mod tables;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

pub use profile::runtime_default;

/// Why a filter cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// Something we cannot express.
    #[error("seccomp {0} is not supported")]
    Unsupported(String),
}

/// Compiles a filter to `struct sock_filter`s in the byte order of this machine.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Vec<u8>, SeccompError> {
    let program = compile::compile(seccomp)?;
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for op in program {
        bytes.extend_from_slice(&op.code.to_ne_bytes());
        bytes.extend_from_slice(&[op.jt, op.jf]);
        bytes.extend_from_slice(&op.k.to_ne_bytes());
    }
    Ok(bytes)
}

/// The `SECCOMP_FILTER_FLAG_*` of a filter; those of runc where it says nothing.
pub fn flags(seccomp: &LinuxSeccomp) -> Result<u32, SeccompError> {
    let Some(flags) = seccomp.flags() else { return Ok(default_flags()) };
    flags.iter().try_fold(0, |all, flag| {
        Ok(all
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC as u32,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => default_flags(),
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(SeccompError::Unsupported(
                        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".to_owned(),
                    ));
                }
            })
    })
}

/// A filter alone does not turn speculation off: old kernels would, at the price of slow branches.
pub fn default_flags() -> u32 {
    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32
}

#[cfg(test)]
mod tests;
