//! Small programs for images, compiled when a story needs them: static, so that they run in an empty image.

use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::test_host::{output_of, program};

/// What holds a pod's namespaces on runtimes that need a process for it: it waits, and reaps what is given to it.
///
/// # Errors
/// As [`compile`].
pub fn pause() -> Result<&'static [u8]> {
    static COMPILED: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(compiled) = COMPILED.get() {
        return Ok(compiled);
    }
    let compiled = compile(
        "#include <signal.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
         static void end(int signal) { _exit(signal == 0); }\n\
         static void reap(int signal) { while (waitpid(-1, 0, WNOHANG) > 0) (void)signal; }\n\
         int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }\n",
    )?;
    Ok(COMPILED.get_or_init(|| compiled))
}

/// A program that tells its effective user: with the setuid bit in an image, whether that counts.
///
/// # Errors
/// As [`compile`].
pub fn effective_user() -> Result<Vec<u8>> {
    compile(
        "#include <stdio.h>\n#include <unistd.h>\n\
         int main(void) { printf(\"Effective uid: %d\\n\", (int)geteuid()); }\n",
    )
}

/// Compiles a C program with the machine's gcc.
///
/// # Errors
/// When gcc is missing or does not take it.
pub fn compile(source: &str) -> Result<Vec<u8>> {
    let directory = tempfile::Builder::new().prefix("pw-c-").tempdir().context("create a directory")?;
    let (text, binary) = (directory.path().join("main.c"), directory.path().join("main"));
    std::fs::write(&text, source).context("write the program")?;
    output_of(program("gcc").args(["-static", "-O1", "-s", "-o"]).arg(&binary).arg(&text))?;
    std::fs::read(&binary).context("read the compiled program")
}
