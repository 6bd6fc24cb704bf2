//! Gives back the memory that only the start needed.
//!
//! The kernel maps sixteen pages of a program for each one that is touched, and keeps them mapped: reading a configuration,
//! opening a journal and shaking hands once leave most of the program resident for good. The pages are those of a file, so
//! taking them out of the process loses nothing: what is used again is mapped again, without a read.

#![expect(
    unsafe_code,
    reason = "the two calls have no safe form: no Rust value knows of the mappings of its own program"
)]

use std::{fs, ops::Range, path::Path};

/// Takes the pages of this program out of the process, and the free ones out of the heap. What is needed comes back by itself.
pub fn give_back() {
    let (Ok(program), Ok(maps)) = (fs::read_link("/proc/self/exe"), fs::read_to_string("/proc/self/maps"))
    else {
        return;
    };
    for range in unwritten(&maps, &program) {
        // SAFETY: the range is a private mapping of the program's file that was never written, code or constants, so that
        // `MADV_DONTNEED` leaves its content as it is: the next access maps the same page of the file.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
    // SAFETY: the allocator's own call, safe at any time and from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The mappings of a program that nothing was ever written to: its code and what comes before it in the file. Constants that the
/// loader filled in with addresses come after the code, are as unwritable and must not be touched.
fn unwritten(maps: &str, program: &Path) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ').map(str::trim);
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
        if fields.nth(3).map(Path::new) != Some(program) {
            continue;
        }
        let bounds = range.split_once('-').and_then(|(start, end)| {
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        });
        match (rights, bounds) {
            ("r--p", Some(bounds)) => found.push(bounds),
            ("r-xp", Some(bounds)) => {
                found.push(bounds);
                return found;
            }
            _ => break,
        }
    }
    // Not the shape that is known: better none than a wrong one.
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a0000000-55d0a04a0000 r--p 00000000 fe:00 1234                       /usr/bin/passerelle-agent
55d0a04a0000-55d0a1b00000 r-xp 0049f000 fe:00 1234                       /usr/bin/passerelle-agent
55d0a1b00000-55d0a1c00000 r--p 01aff000 fe:00 1234                       /usr/bin/passerelle-agent
55d0a1c00000-55d0a1c10000 rw-p 01bff000 fe:00 1234                       /usr/bin/passerelle-agent
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000100000-7f0000200000 r-xp 00000000 fe:00 99                         /lib/x86_64-linux-gnu/libc.so.6
";

    #[test]
    fn code_and_constants_are_found_and_nothing_that_was_written() {
        let found = unwritten(MAPS, Path::new("/usr/bin/passerelle-agent"));
        assert_eq!(found, [0x55d0_a000_0000..0x55d0_a04a_0000, 0x55d0_a04a_0000..0x55d0_a1b0_0000]);
        assert!(unwritten(MAPS, Path::new("/usr/bin/other")).is_empty());
        let writable = MAPS.replacen("r--p", "rw-p", 1);
        let found = unwritten(&writable, Path::new("/usr/bin/passerelle-agent"));
        assert!(found.is_empty(), "another shape: none");
    }

    #[test]
    fn a_program_goes_on_after_it() {
        let before = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!unwritten(&before, &fs::read_link("/proc/self/exe").unwrap()).is_empty(), "{before}");
        give_back();
        // Code and constants are read from the file again; had anything else gone, this process would end here.
        assert_eq!(format!("{:?}", Path::new("/x").join("y")), "\"/x/y\"");
    }
}
