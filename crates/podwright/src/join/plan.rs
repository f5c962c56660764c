//! From flags and a JoinConfiguration to what is to be done: pure. Flags win over the file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory as _;
use clap::parser::ValueSource;
use kubelet::join::{BootstrapToken, CaPin, Trust};

use super::config::File;
use crate::cli::{Cli, JoinArgs};
use crate::config::ConfigError;

/// How the cluster is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By asking an API server.
    Token {
        /// `HOST:PORT`.
        endpoint: String,
        /// Who asks.
        token: BootstrapToken,
        /// What is believed.
        trust: Trust,
    },
    /// By a file.
    File {
        /// A kubeconfig.
        path: PathBuf,
        /// Who asks the cluster for more, if it is not the file's user.
        token: Option<BootstrapToken>,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// How the cluster is found.
    pub(super) how: How,
    /// For how long that is tried.
    pub(super) patience: Duration,
}

impl Plan {
    /// Completes the flags by the file.
    pub(super) fn of(args: &JoinArgs, file: &File) -> Result<Self, ConfigError> {
        let discovery = &file.discovery;
        let by_token = discovery.bootstrap_token.clone().unwrap_or_default();
        let token = first(args.token.as_deref(), &[&by_token.token, &discovery.tls_bootstrap_token]);
        let token = token.map(|text| parse_token(&text)).transpose()?;
        let path =
            args.discovery_file.clone().or_else(|| discovery.file.clone().map(|file| file.kube_config_path));
        let endpoint = first(args.server.as_deref(), &[&by_token.api_server_endpoint]);
        let how = match (path, endpoint) {
            (Some(path), None) => How::File { path, token },
            (Some(path), Some(_)) => {
                let reason = "says where the cluster is: give no HOST:PORT beside it";
                return Err(flag("discovery-file", &path.to_string_lossy(), reason));
            }
            (None, Some(endpoint)) => {
                let token = token.ok_or_else(|| flag("token", "", "must be given to join"))?;
                check_endpoint(&endpoint)?;
                How::Token { endpoint, token, trust: trust(args, &by_token)? }
            }
            (None, None) => {
                let reason = "must be given, or HOST:PORT of an API server";
                return Err(flag("discovery-file", "", reason));
            }
        };
        Ok(Self { how, patience: args.discovery_timeout.0 })
    }
}

fn first(flag: Option<&str>, file: &[&str]) -> Option<String> {
    let given = flag.into_iter().chain(file.iter().copied()).find(|text| !text.is_empty());
    given.map(str::to_owned)
}

fn flag(flag: &'static str, value: &str, reason: &'static str) -> ConfigError {
    ConfigError::Flag { flag, value: value.to_owned(), reason }
}

/// What is told of a wrong token is not the secret.
fn parse_token(text: &str) -> Result<BootstrapToken, ConfigError> {
    let id: String = text.chars().take_while(|c| *c != '.').take(6).collect();
    text.parse().map_err(|reason| flag("token", &format!("{id}…"), reason))
}

fn check_endpoint(text: &str) -> Result<(), ConfigError> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(['/', '@', ' ']));
    match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(1..) => Ok(()),
        _ => Err(ConfigError::Argument {
            name: "HOST:PORT",
            value: text.to_owned(),
            reason: "is not where an API server is, such as 192.0.2.10:6443",
        }),
    }
}

fn trust(args: &JoinArgs, file: &super::config::BootstrapTokenDiscovery) -> Result<Trust, ConfigError> {
    const FLAG: &str = "discovery-token-ca-cert-hash";
    let given = &args.discovery_token_ca_cert_hash;
    let texts = if given.is_empty() { &file.ca_cert_hashes } else { given };
    let pins: Result<Vec<CaPin>, _> =
        texts.iter().map(|text| text.parse().map_err(|reason| flag(FLAG, text, reason))).collect();
    let skip = args.discovery_token_unsafe_skip_ca_verification || file.unsafe_skip_ca_verification;
    match (pins?, skip) {
        (pins, _) if !pins.is_empty() => Ok(Trust::Pinned(pins)),
        (_, true) => Ok(Trust::TokenOnly),
        _ => {
            let reason = "must be given, or --discovery-token-unsafe-skip-ca-verification to believe everybody who knows the token";
            Err(flag(FLAG, "", reason))
        }
    }
}

/// Flags that the agent of a joined node does not take over from the command line of `join`.
const OWN: [&str; 4] = ["config", "kubeconfig", "bootstrap_kubeconfig", "node_name"];

/// The flags of `podwright agent` among the arguments of a `podwright join`, and those of the JoinConfiguration that are not
/// among them. Both commands have them from the same definition.
pub(super) fn agent_flags(arguments: &[OsString], file: &File) -> Vec<OsString> {
    let commands = Cli::command();
    let Some(agent) = commands.find_subcommand("agent") else { return Vec::new() };
    let Ok(matches) = Cli::command().try_get_matches_from(arguments) else { return Vec::new() };
    let Some(("join", given)) = matches.subcommand() else { return Vec::new() };
    let mut flags = Vec::new();
    let mut names = Vec::new();
    for argument in agent.get_arguments().filter(|argument| !argument.is_global_set()) {
        let (id, Some(name)) = (argument.get_id().as_str(), argument.get_long()) else { continue };
        let from_user = given.try_contains_id(id).unwrap_or(false)
            && given.value_source(id) == Some(ValueSource::CommandLine);
        if OWN.contains(&id) || !from_user {
            continue;
        }
        names.push(name);
        for value in given.get_raw(id).into_iter().flatten() {
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value);
            flags.push(flag);
        }
    }
    let from_file = file.node_registration.flags().into_iter();
    let from_file = from_file.filter(|(name, _)| !names.contains(&name.as_str()));
    flags.extend(from_file.map(|(name, value)| OsString::from(format!("--{name}={value}"))));
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use clap::Parser as _;

    const HASH: &str = "sha256:afc00667980bc7838b54cb5cdb778c6bf28ba67461aded03ff4122c1335343ae";
    const TOKEN: &str = "abcdef.0123456789abcdef";

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn args(line: &str) -> JoinArgs {
        match Cli::try_parse_from(words(line)).expect("a command line").command {
            Command::Join(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn plan(line: &str, file: &str) -> Result<Plan, String> {
        let head = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n";
        let file = File::parse(&format!("{head}{file}")).expect("a JoinConfiguration");
        Plan::of(&args(&format!("podwright join {line}")), &file).map_err(|error| error.to_string())
    }

    #[test]
    fn kubeadms_command_line_is_enough() {
        let line = format!("192.0.2.10:6443 --token {TOKEN} --discovery-token-ca-cert-hash {HASH}");
        let how = How::Token {
            endpoint: "192.0.2.10:6443".to_owned(),
            token: TOKEN.parse().expect("a token"),
            trust: Trust::Pinned(vec![HASH.parse().expect("a pin")]),
        };
        assert_eq!(plan(&line, ""), Ok(Plan { how, patience: Duration::from_secs(60) }));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = format!(
            "discovery:\n  bootstrapToken:\n    token: bbbbbb.0123456789abcdef\n    apiServerEndpoint: file:6443\n    caCertHashes: ['{HASH}']\n"
        );
        let How::Token { endpoint, token, .. } = plan("flag:6443", &file).expect("a plan").how else {
            panic!("by token")
        };
        assert_eq!((endpoint.as_str(), token.id()), ("flag:6443", "bbbbbb"));
        let file =
            format!("discovery:\n  file:\n    kubeConfigPath: /d.conf\n  tlsBootstrapToken: {TOKEN}\n");
        let how = How::File { path: "/d.conf".into(), token: TOKEN.parse().ok() };
        assert_eq!(plan("", &file).map(|plan| plan.how), Ok(how));
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_by_its_flag_and_without_the_secret() {
        for (line, expect) in [
            (String::new(), "--discovery-file \"\" must be given, or HOST:PORT"),
            ("h:6443".to_owned(), "--token"),
            (format!("h:6443 --token {TOKEN}"), "--discovery-token-ca-cert-hash \"\" must be given"),
            (format!("h --token {TOKEN} --discovery-token-unsafe-skip-ca-verification"), "HOST:PORT \"h\""),
            (format!("https://h:6443 --token {TOKEN}"), "HOST:PORT \"https://h:6443\""),
            (format!("h:6443 --token {TOKEN} --discovery-token-ca-cert-hash sha256:12"), "is no hash"),
            (format!("h:6443 --discovery-file f --token {TOKEN}"), "--discovery-file \"f\" says where"),
        ] {
            let message = plan(&line, "").expect_err(&line);
            assert!(message.contains(expect), "{message} / {expect}");
        }
        let message = plan("h:6443 --token abcdef.SECRET", "").expect_err("a wrong token");
        assert!(message.contains("abcdef…") && !message.contains("SECRET"), "{message}");
    }

    #[test]
    fn the_agent_gets_its_own_flags_and_the_file_s_that_nobody_gave() {
        let line = format!(
            "podwright join h:6443 --token {TOKEN} --root /r --node-name n --node-labels a=b,c=d --pod-network builtin --seccomp-default -v"
        );
        let file = File::parse(
            "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\nnodeRegistration:\n  name: other\n  \
             kubeletExtraArgs: [{name: node-labels, value: x=y}, {name: node-ip, value: 192.0.2.7}]\n",
        )
        .expect("a JoinConfiguration");
        let mut flags: Vec<_> = agent_flags(&words(&line), &file)
            .into_iter()
            .map(|flag| flag.into_string().expect("text"))
            .collect();
        flags.sort();
        assert_eq!(
            flags,
            [
                "--node-ip=192.0.2.7",
                "--node-labels=a=b",
                "--node-labels=c=d",
                "--pod-network=builtin",
                "--root=/r",
                "--seccomp-default=true"
            ]
        );
        let line = words(&format!("podwright agent {}", flags.join(" ")));
        assert!(Cli::try_parse_from(line).is_ok(), "the agent takes them");
    }
}
