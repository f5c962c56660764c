//! The container's process: what it runs, as whom, with which rights.

use std::collections::HashSet;

use cri::v1;
use oci::plan::{CAPABILITY_NAMES, capability_mask, known_to_kernel};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, User};

use super::{Request, SpecError};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What other runtimes tell a program of its terminal.
const TERM: &str = "TERM=xterm";

/// The capabilities of an ordinary container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The process, and its bounding set as a mask: the seccomp profile depends on it.
pub(super) fn render(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(Process, u64), SpecError> {
    let args = arguments(request)?;
    let (bounding, ambient) = capabilities(security)?;
    // A user without privileges has its capabilities in the bounding set only, as execve(2) would have it.
    let held = if request.user.uid == 0 { bounding } else { ambient };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set_of(bounding)))
        .set_effective(Some(set_of(held)))
        .set_permitted(Some(set_of(held)))
        .set_inheritable(Some(set_of(ambient)))
        .set_ambient(Some(set_of(ambient)));
    let mut user = User::default();
    user.set_uid(request.user.uid)
        .set_gid(request.user.gid)
        .set_additional_gids(Some(request.user.additional_gids.clone()));
    let resources = request.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let oom_score_adj =
        resources.and_then(|resources| i32::try_from(resources.oom_score_adj).ok()).unwrap_or(0);
    let mut process = Process::default();
    process
        .set_terminal(Some(request.config.tty))
        .set_user(user)
        .set_args(Some(args))
        .set_env(Some(environment(request)))
        .set_cwd(working_directory(request).into())
        .set_capabilities(Some(sets))
        .set_rlimits(None)
        .set_no_new_privileges(Some(security.no_new_privs && !security.privileged))
        // Always said: else the supervisor's own would be inherited.
        .set_oom_score_adj(Some(oom_score_adj));
    Ok((process, bounding))
}

/// Kubernetes' command replaces the entrypoint and the image's command; its args replace only the latter.
fn arguments(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let image = request.image.config();
    let of_image = |part: Option<&Vec<String>>| part.cloned().unwrap_or_default();
    let entrypoint = of_image(image.as_ref().and_then(|image| image.entrypoint().as_ref()));
    let command = of_image(image.as_ref().and_then(|image| image.cmd().as_ref()));
    let config = request.config;
    let mut args = if config.command.is_empty() { entrypoint } else { config.command.clone() };
    match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => args.extend(command),
        _ => args.extend(config.args.iter().cloned()),
    }
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::Invalid(
            "no command specified: neither the container nor its image names one".into(),
        ));
    }
    Ok(args)
}

fn working_directory(request: &Request<'_>) -> String {
    let of_image = request.image.config().as_ref().and_then(|image| image.working_dir().clone());
    [request.config.working_dir.clone(), of_image.unwrap_or_default(), "/".to_owned()]
        .into_iter()
        .find(|directory| !directory.is_empty())
        .unwrap_or_default()
}

/// The variable that a process with a terminal needs, unless it has it.
pub(crate) fn add_term(env: &mut Vec<String>) {
    if !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push(TERM.to_owned());
    }
}

/// The image's variables, overridden by the container's; PATH, HOSTNAME and HOME where nobody sets them.
fn environment(request: &Request<'_>) -> Vec<String> {
    let of_image = request.image.config().as_ref().and_then(|image| image.env().clone()).unwrap_or_default();
    let mut variables: Vec<String> = Vec::new();
    let mut set = |variable: String| {
        let name = variable.split('=').next().unwrap_or_default().to_owned() + "=";
        match variables.iter_mut().find(|known| known.starts_with(&name)) {
            Some(known) => *known = variable,
            None => variables.push(variable),
        }
    };
    set(DEFAULT_PATH.to_owned());
    set(format!("HOSTNAME={}", request.hostname));
    if request.config.tty {
        set(TERM.to_owned());
    }
    of_image.into_iter().for_each(&mut set);
    request.config.envs.iter().for_each(|env| set(variable(env)));
    if !variables.iter().any(|variable| variable.starts_with("HOME=")) {
        variables.push(format!("HOME={}", request.user.home));
    }
    variables
}

/// A value is bytes, but a container's config.json is text: what is not UTF-8 becomes U+FFFD, as other runtimes have it.
fn variable(env: &v1::KeyValue) -> String {
    format!("{}={}", env.key, String::from_utf8_lossy(&env.value))
}

/// The bounding and the ambient set as masks. Adding or dropping ALL comes before the single names.
fn capabilities(security: &v1::LinuxContainerSecurityContext) -> Result<(u64, u64), SpecError> {
    let all = (1 << CAPABILITY_NAMES.len()) - 1;
    if security.privileged {
        return Ok((all & known_to_kernel(), 0));
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let has_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mask = |names: &[String]| -> Result<u64, SpecError> {
        let single = names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL"));
        single.map(|name| bit(name)).try_fold(0, |mask, bit| Ok(mask | bit?))
    };
    let defaults =
        DEFAULT_CAPABILITIES.iter().map(|name| bit(name)).try_fold(0, |mask, bit| Ok(mask | bit?))?;
    let mut set = defaults;
    if has_all(&asked.add_capabilities) {
        set = all & known_to_kernel();
    }
    if has_all(&asked.drop_capabilities) {
        set = 0;
    }
    set |= mask(&asked.add_capabilities)?;
    set &= !mask(&asked.drop_capabilities)?;
    let ambient = mask(&asked.add_ambient_capabilities)?;
    Ok((set | ambient, ambient))
}

fn bit(name: &str) -> Result<u64, SpecError> {
    capability_mask(&name.to_ascii_uppercase())
        .ok_or_else(|| SpecError::Invalid(format!("unknown capability {name:?}")))
}

fn set_of(mask: u64) -> HashSet<Capability> {
    let names = CAPABILITY_NAMES.iter().enumerate().filter(|(number, _)| mask & (1 << number) != 0);
    names.filter_map(|(_, name)| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> v1::LinuxContainerSecurityContext {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let capabilities = v1::Capability {
            add_capabilities: names(add),
            drop_capabilities: names(drop),
            add_ambient_capabilities: Vec::new(),
        };
        v1::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() }
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let mask = |add: &[&str], drop: &[&str]| capabilities(&security(add, drop)).expect("known names").0;
        assert_eq!(mask(&[], &[]), 0xa804_25fb);
        assert_eq!(mask(&["KILL"], &["ALL"]), 1 << 5);
        assert_eq!(mask(&["CAP_SYS_ADMIN"], &["KILL"]), (0xa804_25fb | 1 << 21) & !(1 << 5));
        assert_eq!(mask(&["ALL"], &["NET_RAW"]) & (1 << 13), 0);
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_kept_as_far_as_text_can() {
        let env = v1::KeyValue { key: "NAME".into(), value: b"caf\xe9".to_vec() };
        assert_eq!(variable(&env), "NAME=caf\u{fffd}");
    }

    #[test]
    fn an_unknown_capability_is_refused_by_name() {
        let error = capabilities(&security(&["FLY"], &[])).expect_err("no such capability");
        assert!(error.to_string().contains("FLY"), "{error}");
    }

    #[test]
    fn every_name_is_one_that_the_spec_knows() {
        assert_eq!(set_of((1 << CAPABILITY_NAMES.len()) - 1).len(), CAPABILITY_NAMES.len());
    }
}
