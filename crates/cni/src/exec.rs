//! Runs a plugin binary: environment and standard input in, JSON out (CNI 1.1 §2), for a bounded time and output.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::{CniError, Code};

/// What a plugin may print: results are a few kilobytes.
const OUTPUT_MAX: u64 = 1 << 20;

/// What a plugin is called with, beside its configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call<'a> {
    /// CNI_COMMAND.
    pub(crate) command: &'a str,
    /// CNI_CONTAINERID.
    pub(crate) container_id: &'a str,
    /// CNI_NETNS; none when the namespace is gone.
    pub(crate) netns: Option<&'a Path>,
    /// CNI_IFNAME.
    pub(crate) ifname: &'a str,
    /// CNI_ARGS.
    pub(crate) args: String,
    /// CNI_PATH.
    pub(crate) bin_dirs: &'a [PathBuf],
}

/// The program of that name in the first directory that has one.
pub(crate) fn find(name: &str, bin_dirs: &[PathBuf]) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return None;
    }
    let runs = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    bin_dirs.iter().map(|dir| dir.join(name)).find(runs)
}

/// Runs the program; gives what it printed, if anything. It is killed, with what it started, when `patience` is over.
///
/// # Errors
/// The plugin's own error with its code; that it did not end in time, printed too much, or printed no JSON.
pub(crate) async fn run(
    program: &Path,
    call: &Call<'_>,
    config: &Value,
    patience: Duration,
) -> Result<Option<Value>, CniError> {
    let what = || format!("CNI plugin {} {}", program.display(), call.command);
    let io = |error: std::io::Error| CniError::caused(Code::Io, format!("run {}", what()), error);
    let mut child = command(program, call).spawn().map_err(io)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let ended = tokio::time::timeout(patience, talk(&mut child, config.to_string())).await;
    let stop = || {
        if let Some(group) = group {
            // Whatever it started holds the network's state, or our pipes.
            let _ = kill_process_group(group, Signal::KILL);
        }
    };
    let (status, stdout, stderr) = match ended {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => {
            stop();
            return Err(io(error));
        }
        Err(_) => {
            stop();
            let message =
                format!("{} did not end within {} s and was killed", what(), patience.as_secs_f64());
            return Err(CniError::new(Code::TryAgain, message));
        }
    };
    if stdout.len() as u64 > OUTPUT_MAX {
        stop();
        return Err(CniError::new(
            Code::Internal,
            format!("{} printed more than {OUTPUT_MAX} bytes", what()),
        ));
    }
    let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
    if !stderr.is_empty() {
        tracing::debug!(plugin = %program.display(), stderr, "a CNI plugin wrote to its standard error");
    }
    let printed: Option<Value> = match stdout.trim_ascii() {
        b"" => None,
        text => Some(serde_json::from_slice(text).map_err(|error| {
            CniError::caused(Code::Decode, format!("parse what {} printed", what()), error)
        })?),
    };
    if status.success() {
        return Ok(printed);
    }
    Err(match printed.filter(|value| value["code"].is_u64()) {
        Some(value) => plugin_error(&what(), &value),
        None => CniError::new(Code::Internal, format!("{} failed ({status}): {stderr}", what())),
    })
}

#[expect(clippy::disallowed_methods, reason = "the one place that starts CNI plugins")]
fn command(program: &Path, call: &Call<'_>) -> Command {
    let mut command = std::process::Command::new(program);
    let path = std::env::join_paths(call.bin_dirs).unwrap_or_default();
    command
        .env("CNI_COMMAND", call.command)
        .env("CNI_CONTAINERID", call.container_id)
        .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")))
        .env("CNI_IFNAME", call.ifname)
        .env("CNI_ARGS", &call.args)
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = Command::from(command);
    command.process_group(0).kill_on_drop(true);
    command
}

type Ended = (std::process::ExitStatus, Vec<u8>, Vec<u8>);

async fn talk(child: &mut Child, input: String) -> std::io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read its configuration says what it thinks of it by itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(feed, bounded(stdout), bounded(stderr));
    let (stdout, stderr) = (stdout?, stderr?);
    if stdout.len() as u64 > OUTPUT_MAX {
        // It may wait for us to read on.
        child.start_kill()?;
    }
    Ok((child.wait().await?, stdout, stderr))
}

async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// CNI 1.1 §5 "Error": code, message, details.
fn plugin_error(what: &str, value: &Value) -> CniError {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let code = value["code"].as_u64().and_then(|code| u32::try_from(code).ok()).unwrap_or(100);
    let details = match text("details") {
        "" => String::new(),
        details => format!(" ({details})"),
    };
    CniError::new(Code::from_number(code), format!("{what}: {}{details}", text("msg")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        (dir, path)
    }

    async fn outcome(script: &str, patience: Duration) -> Result<Option<Value>, CniError> {
        let (dir, path) = plugin(script);
        let dirs = [dir.path().to_owned()];
        let call = Call {
            command: "ADD",
            container_id: "c1",
            netns: Some(Path::new("/proc/7/ns/net")),
            ifname: "eth0",
            args: "K8S_POD_NAME=web".to_owned(),
            bin_dirs: &dirs,
        };
        run(&path, &call, &serde_json::json!({ "name": "n" }), patience).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_plugin_gets_the_protocol_s_variables_and_its_configuration() {
        let script = r#"printf '{"env":"%s %s %s %s %s","config":%s}' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$(cat)""#;
        let value = outcome(script, LONG).await.expect("it ends well").expect("it prints");
        assert_eq!(value["env"], "ADD c1 /proc/7/ns/net eth0 K8S_POD_NAME=web");
        assert_eq!(value["config"]["name"], "n");
        assert_eq!(outcome("true", LONG).await.expect("it ends well"), None);
    }

    #[tokio::test]
    async fn a_plugin_s_own_error_is_told_with_its_code() {
        let script =
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no address","details":"range is full"}'; exit 1"#;
        let error = outcome(script, LONG).await.expect_err("it fails");
        assert_eq!(error.code, Code::TryAgain);
        assert!(error.message.ends_with("plugin ADD: no address (range is full)"), "{error}");
        let error = outcome("echo oh no >&2; exit 3", LONG).await.expect_err("it fails");
        assert!(error.message.contains("oh no") && error.message.contains('3'), "{error}");
        let error = outcome("echo '<html>'", LONG).await.expect_err("no JSON");
        assert_eq!(error.code, Code::Decode);
    }

    /// The child that the plugin leaves behind holds its standard output, too.
    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let error = outcome(&script, Duration::from_millis(500)).await.expect_err("it hangs");
        assert!(error.message.contains("did not end within 0.5 s and was killed"), "{error}");
        let pid: i32 = std::fs::read_to_string(&pid_file).expect("its child").trim().parse().expect("a pid");
        let mut patience = 500;
        while host::process::ProcessId::of(pid).is_ok_and(|process| process.is_alive()) {
            patience -= 1;
            assert!(patience > 0, "the child lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn output_without_end_is_cut() {
        let error = outcome("exec yes", LONG).await.expect_err("endless");
        assert!(error.message.contains("printed more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn programs_are_found_by_plain_names_only() {
        let (dir, path) = plugin("true");
        let dirs = [PathBuf::from("/nonexistent"), dir.path().to_owned()];
        assert_eq!(find("plugin", &dirs), Some(path));
        for name in ["", "..", "../plugin", "/bin/sh", "none"] {
            assert_eq!(find(name, &dirs), None, "{name}");
        }
    }
}
