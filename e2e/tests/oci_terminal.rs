//! Terminals by runc's command line. Each story runs on `podwright oci` and, as the check that the story is right, on runc 1.5.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{output_of, text_of};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

e2e::oci_stories! {
    a_console_socket_receives_the_terminals_other_side,
    a_session_has_a_terminal_of_its_own,
    a_terminal_without_a_socket_needs_somebody_who_waits,
    cve_2025_52565_console_is_the_terminal_whatever_the_volume_has,
    run_relays_a_terminal_while_it_waits,
}

/// A console socket in the bundle's directory.
fn socket(bundle: &Bundle, name: &str) -> Result<(UnixListener, String)> {
    let path = bundle.path().join(name);
    Ok((UnixListener::bind(&path).context("bind the console socket")?, path.display().to_string()))
}

/// What comes out of the terminal that is sent to the socket, up to a line with `end`.
fn read_until(listener: &UnixListener, end: &str) -> Result<String> {
    let (connection, _) = listener.accept().context("accept")?;
    let mut name = [0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut control, flags)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut terminal = std::fs::File::from(descriptor.context("a descriptor")?);
    let mut text = String::new();
    let mut buffer = [0_u8; 1024];
    while !text.contains(end) {
        let length = terminal.read(&mut buffer).with_context(|| format!("read after {text:?}"))?;
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(text.replace('\r', ""))
}

fn a_console_socket_receives_the_terminals_other_side(runtime: OciRuntime) -> Result<()> {
    let mut bundle =
        Bundle::new(runtime, "tty; stty size; stat -c %t:%T /dev/console; echo end; exec sleep 1000")?;
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.spec["process"]["consoleSize"] = json!({ "height": 30, "width": 100 });
    let (listener, path) = socket(&bundle, "c.sock")?;
    let directory = bundle.path().display().to_string();
    let run = ["run", "--detach", "--console-socket", &path, "--bundle", &directory, &bundle.id];
    output_of(&mut bundle.command(&run)?)?;
    let text = read_until(&listener, "end\r\n")?;
    assert_eq!(text, "/dev/pts/0\n30 100\n88:0\nend\n");
    Ok(())
}

fn a_session_has_a_terminal_of_its_own(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "exec sleep 1000")?;
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    let (listener, path) = socket(&bundle, "c.sock")?;
    let script = "tty; echo end; exec sleep 1000";
    let exec = ["exec", "--tty", "--detach", "--console-socket", &path, &bundle.id, "/bin/sh", "-c", script];
    output_of(&mut bundle.command(&exec)?)?;
    assert_eq!(read_until(&listener, "end\r\n")?, "/dev/pts/0\nend\n");
    Ok(())
}

fn a_terminal_without_a_socket_needs_somebody_who_waits(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let directory = bundle.path().display().to_string();
    let (_listener, path) = socket(&bundle, "c.sock")?;
    let unused = ["run", "--detach", "--console-socket", &path, "--bundle", &directory, &bundle.id];
    let output = bundle.command(&unused)?.output()?;
    assert!(!output.status.success() && text_of(&output).contains("console socket"), "{}", text_of(&output));
    bundle.spec["process"]["terminal"] = json!(true);
    let output = bundle.command(&["create", "--bundle", &directory, &bundle.id])?.output()?;
    assert!(!output.status.success(), "{}", text_of(&output));
    assert!(text_of(&output).contains("cannot allocate tty"), "{}", text_of(&output));
    bundle.state().expect_err("there is no container");
    Ok(())
}

fn run_relays_a_terminal_while_it_waits(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "tty; exit 4")?;
    bundle.spec["process"]["terminal"] = json!(true);
    let directory = bundle.path().display().to_string();
    let run = bundle.command(&["run", "--bundle", &directory, &bundle.id])?;
    // script(1) gives the command a terminal, as a person has one.
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let output = e2e::test_host::program("script")
        .args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"])
        .stdin(std::process::Stdio::null())
        .output()?;
    assert_eq!(output.status.code(), Some(4), "{}", text_of(&output));
    // What script(1) makes of the end of its own input may stand before it.
    assert!(text_of(&output).contains("/dev/pts/0"), "{}", text_of(&output));
    Ok(())
}

fn cve_2025_52565_console_is_the_terminal_whatever_the_volume_has(runtime: OciRuntime) -> Result<()> {
    // /dev, or /dev/pts, is a volume that another container fills with links to what a console must not be.
    for (volume, link) in [("/dev", "console"), ("/dev/pts", "0"), ("/dev/pts", "ptmx")] {
        let mut bundle = Bundle::new(runtime, "stat -Lc %t:%T /dev/console; echo end; exec sleep 1000")?;
        bundle.spec["process"]["terminal"] = json!(true);
        bundle.spec["linux"]["maskedPaths"] = json!([]);
        let source = bundle.path().join("volume");
        std::fs::create_dir(&source)?;
        std::fs::create_dir(source.join("pts"))?;
        let outside = bundle.path().join("outside");
        std::fs::write(&outside, "untouched")?;
        let target = if volume == "/dev" {
            format!("{}{}", "../".repeat(20), outside.display())
        } else {
            "/proc/sysrq-trigger".to_owned()
        };
        std::os::unix::fs::symlink(target, source.join(link))?;
        let mounts = bundle.spec["mounts"].as_array_mut().context("mounts")?;
        for mount in mounts.iter_mut().filter(|mount| mount["destination"] == volume) {
            *mount = json!({ "destination": volume, "type": "bind", "source": source, "options": ["rbind"] });
        }
        let (listener, path) = socket(&bundle, "c.sock")?;
        let directory = bundle.path().display().to_string();
        let run = ["run", "--detach", "--console-socket", &path, "--bundle", &directory, &bundle.id];
        let output = bundle.command(&run)?.output()?;
        // Refused, or the terminal all the same.
        if output.status.success() {
            assert_eq!(read_until(&listener, "end\r\n")?, "88:0\nend\n", "{volume}/{link}");
        }
        assert_eq!(std::fs::read_to_string(&outside)?, "untouched", "{volume}/{link}");
    }
    Ok(())
}
