//! Signals by name: as people, images and `kill` write them.

/// The number of a signal given by number, `KILL`, `SIGKILL` or `RTMIN+1`; nothing when there is no such signal.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 33] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("IOT", libc::SIGIOT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    // The first two real-time signals belong to the C library, so counting starts at 34.
    let offset = |prefix: &str| {
        name.strip_prefix(prefix).map(|rest| if rest.is_empty() { Ok(0) } else { rest.parse::<i32>() })
    };
    let number = match (offset("RTMIN"), offset("RTMAX")) {
        (Some(Ok(above)), _) => 34 + above,
        (_, Some(Ok(below))) => 64 + below,
        _ => return None,
    };
    (34..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_go_by_name_and_number() {
        for (text, number) in
            [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX", 64)]
        {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIGNOTHING", "RTMIN+40"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
