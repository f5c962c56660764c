//! Memory that this process holds and can do without.

use std::io;
use std::ops::Range;
use std::time::Duration;

use crate::sys;

pub use crate::sys::trim_heap;

/// Processor time that this process has used.
pub fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

/// Gives back what work has left behind: free pages of the heap, and the mapped pages of this program's file. What runs next is mapped
/// again, page by page; it stays in the page cache for as long as the kernel likes.
pub fn release() -> io::Result<()> {
    let released = forget_program();
    trim_heap();
    released
}

fn forget_program() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let exe = std::fs::read_link("/proc/self/exe")?;
    unwritten(&maps, &exe.to_string_lossy()).into_iter().try_for_each(sys::forget_pages)
}

/// Mappings of a file into which nothing can have been written: its code, and the constants at its beginning. What is mapped read-only
/// further on was writable while the program was relocated.
fn unwritten(maps: &str, file: &str) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut words = line.splitn(6, ' ');
        let (addresses, rights, offset) = (words.next()?, words.next()?, words.next()?);
        let name = words.nth(2)?.trim_start();
        let (start, end) = addresses.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let unwritten = rights == "r-xp" || (rights == "r--p" && number(offset)? == 0);
        (unwritten && name == file).then_some(number(start)?..number(end)?)
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_can_have_written_is_let_go_of() {
        let maps = "00200000-00863000 r--p 00000000 fe:00 12  /usr/bin/podwright\n\
            00863000-028c8000 r-xp 00662000 fe:00 12                         /usr/bin/podwright\n\
            028c8000-028cd000 r--p 026c6000 fe:00 12                         /usr/bin/podwright\n\
            028cd000-028d0000 rw-p 026ca000 fe:00 12                         /usr/bin/podwright\n\
            7f0000000000-7f0000001000 r-xp 00000000 00:00 0                  [vdso]\n\
            7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n";
        let found = unwritten(maps, "/usr/bin/podwright");
        let bounds: Vec<_> = found.iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(bounds, [(0x0020_0000, 0x0086_3000), (0x0086_3000, 0x028c_8000)]);
        assert_eq!(unwritten(maps, "/usr/bin/other"), []);
    }

    #[test]
    fn the_program_goes_on_after_it_let_go() {
        let before = processor_time();
        release().unwrap();
        assert!(processor_time() > before);
    }
}
