//! The counters of a network namespace's interfaces, from the text of `/proc/PID/net/dev`.

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Counters,
    pub(crate) sent: Counters,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// Reads the namespace that a process is in, without its loopback; nothing when the process is gone.
pub(crate) fn read(pid: i32) -> Vec<Interface> {
    std::fs::read_to_string(format!("/proc/{pid}/net/dev")).map(|text| parse(&text)).unwrap_or_default()
}

fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let counters = |from: usize| {
            let numbers = numbers.get(from..from + 4)?;
            Some(Counters { bytes: numbers[0], packets: numbers[1], errors: numbers[2], dropped: numbers[3] })
        };
        Some(Interface { name: name.trim().to_owned(), received: counters(0)?, sent: counters(8)? })
    };
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_read_and_loopback_is_not() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n  \
            eth0: 1296      16    1    2    0     0          0         0      806      11    3    4    0     0       0          0\n";
        let received = Counters { bytes: 1296, packets: 16, errors: 1, dropped: 2 };
        let sent = Counters { bytes: 806, packets: 11, errors: 3, dropped: 4 };
        assert_eq!(parse(text), [Interface { name: "eth0".into(), received, sent }]);
    }
}
