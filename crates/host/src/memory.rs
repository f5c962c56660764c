//! Memory that this process holds and can do without.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;

use crate::sys;

pub use crate::sys::trim_heap;

/// Processor time that this process has used.
pub fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

/// Gives back what work has left behind: free pages of the heap, the part of the stack that nothing is on any more, and the mapped pages of
/// this program's file. What runs next is mapped again, page by page; it stays in the page cache for as long as the kernel likes.
pub fn release() -> io::Result<()> {
    let maps = std::fs::read_to_string(MAPS)?;
    let exe = std::fs::read_link("/proc/self/exe")?;
    let released = unwritten(&maps, &exe.to_string_lossy()).into_iter().try_for_each(sys::forget_pages);
    trim_heap();
    released.and(left_stack(&maps).map_or(Ok(()), sys::forget_left_stack))
}

/// What a process needs to give back nearly everything, also where there will be no /proc any more: its mappings.
#[derive(Debug)]
pub struct OwnMappings(File);

impl OwnMappings {
    /// Opens the caller's mappings.
    pub fn open() -> io::Result<Self> {
        File::open(MAPS).map(Self)
    }

    /// Gives back all memory but what the program needs to sleep, and sleeps until a signal kills the process. No handler of a signal may
    /// be installed.
    pub fn sleep_without(mut self) -> ! {
        let mut maps = String::new();
        // Where they cannot be read it sleeps with what it has.
        let _ = self.0.read_to_string(&mut maps);
        drop(self.0);
        let left = left_stack(&maps);
        // As many as a program like this has, and room to spare: what does not fit is kept.
        let mut all = written(&maps).into_iter().chain(left);
        sys::sleep_without(std::array::from_fn(|_| all.next().unwrap_or_default()))
    }
}

const MAPS: &str = "/proc/self/maps";

/// The part of the main thread's stack that lies a page or more beyond the caller; none for other threads.
fn left_stack(maps: &str) -> Option<Range<usize>> {
    const PAGE: usize = 4096;
    let on_stack = 0_u8;
    let here = std::ptr::from_ref(&on_stack).addr();
    let stack = mappings(maps).find(|mapping| mapping.name == "[stack]")?.range;
    let end = (here & !(PAGE - 1)).checked_sub(PAGE)?;
    (stack.contains(&here) && stack.start < end).then_some(stack.start..end)
}

/// Mappings of a file into which nothing can have been written: its code, and the constants at its beginning. What is mapped read-only
/// further on was writable while the program was relocated.
fn unwritten(maps: &str, file: &str) -> Vec<Range<usize>> {
    let is_unwritten = |one: &Mapping| one.rights == "r-xp" || (one.rights == "r--p" && one.offset == 0);
    let all = mappings(maps).filter(|one| one.name == file && is_unwritten(one));
    all.map(|one| one.range).collect()
}

/// Private mappings that can be written into, but the stack.
fn written(maps: &str) -> Vec<Range<usize>> {
    let all = mappings(maps).filter(|one| one.rights == "rw-p" && one.name != "[stack]");
    all.map(|one| one.range).collect()
}

/// A line of `maps`, see proc_pid_maps(5).
struct Mapping<'a> {
    range: Range<usize>,
    rights: &'a str,
    offset: usize,
    name: &'a str,
}

fn mappings(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(|line| {
        let number = |text| usize::from_str_radix(text, 16).ok();
        let mut words = line.splitn(6, ' ');
        let (addresses, rights, offset) = (words.next()?, words.next()?, number(words.next()?)?);
        let name = words.nth(2)?.trim_start();
        let (start, end) = addresses.split_once('-')?;
        Some(Mapping { range: number(start)?..number(end)?, rights, offset, name })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00200000-00863000 r--p 00000000 fe:00 12  /usr/bin/podwright\n\
            00863000-028c8000 r-xp 00662000 fe:00 12                         /usr/bin/podwright\n\
            028c8000-028cd000 r--p 026c6000 fe:00 12                         /usr/bin/podwright\n\
            028cd000-028d0000 rw-p 026ca000 fe:00 12                         /usr/bin/podwright\n\
            7f0000000000-7f0000001000 r-xp 00000000 00:00 0                  [vdso]\n\
            7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n\
            7ffc8c5a7000-7ffc8c5c8000 rw-p 00000000 00:00 0                  [stack]\n";

    #[test]
    fn only_what_nobody_can_have_written_is_let_go_of() {
        let found = unwritten(EXAMPLE, "/usr/bin/podwright");
        let bounds: Vec<_> = found.iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(bounds, [(0x0020_0000, 0x0086_3000), (0x0086_3000, 0x028c_8000)]);
        assert_eq!(unwritten(EXAMPLE, "/usr/bin/other"), []);
    }

    #[test]
    fn who_only_sleeps_can_do_without_all_that_was_written_but_the_stack() {
        let bounds: Vec<_> = written(EXAMPLE).iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(bounds, [(0x028c_d000, 0x028d_0000), (0x7f00_0000_2000, 0x7f00_0000_3000)]);
        // This stack is another one.
        assert_eq!(left_stack(EXAMPLE), None);
    }

    #[test]
    fn the_program_goes_on_after_it_let_go() {
        let before = processor_time();
        release().unwrap();
        assert!(processor_time() > before);
    }
}
