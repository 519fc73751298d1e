//! Unreadable pages of mapped files: the file was truncated after it was mapped, or its disk fails.
//!
//! If a process touches such a page, the system sends SIGBUS and ends it without a message. A process that called
//! [`catch_unreadable_pages`] continues: a handler records where the file can't be read and replaces the rest of the
//! mapping with zeros. The work continues on zeros until the next check, which fails. So nothing is reported about a
//! file before a check that all of it could be read.
//!
//! The alternative, fallible reads, copies every byte and takes twice as long (`tensorcarve bench --set input`).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t};

/// Nothing is lost.
const NONE: u64 = u64::MAX;

/// A mapping registered with the handler, and the next entries of the list. Entries are reused and never freed, so the
/// handler can walk them at any time.
#[derive(Debug)]
struct Entry {
    taken: AtomicBool,
    /// Address and number of its bytes; 0 if the entry has no mapping.
    start: AtomicUsize,
    len: AtomicUsize,
    /// The first byte of it that could not be read, or [`NONE`].
    lost: AtomicU64,
    next: OnceLock<Box<Entry>>,
}

static ENTRIES: Entry = Entry::new();
/// The previous SIGBUS handler.
static BEFORE: OnceLock<sigaction> = OnceLock::new();
/// Page size of this machine, stored here because the handler must not query it.
static PAGE: AtomicUsize = AtomicUsize::new(0);

impl Entry {
    const fn new() -> Self {
        let (start, len, lost) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(NONE));
        Self { taken: AtomicBool::new(false), start, len, lost, next: OnceLock::new() }
    }

    /// Takes an unused entry.
    fn take() -> &'static Self {
        let mut entry = &ENTRIES;
        while entry.taken.swap(true, Ordering::AcqRel) {
            entry = entry.next.get_or_init(|| Box::new(Self::new()));
        }
        entry
    }

    /// The entry whose mapping contains an address. It only loads, so a signal handler may call it.
    fn find(address: usize) -> Option<&'static Self> {
        let mut entry = Some(&ENTRIES);
        while let Some(here) = entry {
            let start = here.start.load(Ordering::Acquire);
            if address.wrapping_sub(start) < here.len.load(Ordering::Acquire) {
                return Some(here);
            }
            entry = here.next.get().map(|next| &**next);
        }
        None
    }
}

/// A mapping that is registered with the handler until this value is dropped.
#[derive(Debug)]
pub(super) struct Watched(&'static Entry);

impl Watched {
    /// Registers the bytes of a mapping. They must stay mapped as long as the result lives.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let entry = Entry::take();
        entry.lost.store(NONE, Ordering::Release);
        entry.start.store(bytes.as_ptr().addr(), Ordering::Release);
        entry.len.store(bytes.len(), Ordering::Release);
        Self(entry)
    }

    /// Offset of the first unreadable byte, if any; from there on zeros were read.
    pub(super) fn lost(&self) -> Option<u64> {
        Some(self.0.lost.load(Ordering::Acquire)).filter(|offset| *offset != NONE)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.len.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Installs a SIGBUS handler for the whole process, so that a dump that becomes unreadable is an error and does not end
/// the process. Other SIGBUS signals are passed to the previous handler.
///
/// This library never does so by itself, because signals belong to the program. Without the handler, opening and
/// reading work the same, but a file that is truncated while it is mapped ends the process.
///
/// # Errors
/// The system does not accept the handler.
pub fn catch_unreadable_pages() -> io::Result<()> {
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE.store(usize::try_from(page).map_err(|_| io::Error::last_os_error())?, Ordering::Release);
    let mut result = Ok(());
    BEFORE.get_or_init(|| {
        // SAFETY: all bytes zero are a valid sigaction, and the pointers are to live ones. The old handler is known before
        // the new one can run: it is asked for first.
        unsafe {
            let mut before: sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) != 0 {
                result = Err(io::Error::last_os_error());
            }
            before
        }
    });
    result?;
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: as above; the handler has the signature that SA_SIGINFO asks for, and calls nothing that a handler may not.
    // SA_ONSTACK: the stack of the thread may be what could not be read.
    let installed = unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The handler.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes a valid siginfo_t, whose address is set where the code says that the kernel sent it.
    let (is_of_kernel, address) = unsafe { ((*info).si_code > 0, (*info).si_addr().addr()) };
    let entry = if is_of_kernel { Entry::find(address) } else { None };
    if !entry.is_some_and(|entry| give_up(entry, address)) {
        pass_on(signal, info, context);
    }
}

/// Records that a mapping can't be read at an address, and maps zeros from there to its end, so that work on it ends
/// soon.
fn give_up(entry: &Entry, address: usize) -> bool {
    let page = PAGE.load(Ordering::Acquire);
    let start = entry.start.load(Ordering::Acquire);
    let end = start + entry.len.load(Ordering::Acquire);
    // A mapping begins at a page.
    let from = address - address % page;
    // Before the zeros are there: who reads them must be able to learn of it.
    entry.lost.fetch_min((from - start) as u64, Ordering::SeqCst);
    // SAFETY: errno is the thread's own, and what was interrupted may be about to read it. The pages from `from` to `end`
    // are those of the mapping that the entry is of, which is ours alone; they stay readable.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let zeros = libc::mmap(std::ptr::with_exposed_provenance_mut(from), end - from, libc::PROT_READ, flags, -1, 0);
        *errno = before;
        zeros != libc::MAP_FAILED
    }
}

/// Does what would have happened without our handler.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().filter(|before| ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction));
    // SAFETY: a handler that is neither of the two constants is a function of the signature that its flags say. Without
    // one, the default is restored, and the instruction that is now run again ends the process.
    unsafe {
        match before {
            Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    std::mem::transmute(before.sa_sigaction);
                handler(signal, info, context);
            }
            Some(before) => {
                let handler: extern "C" fn(c_int) = std::mem::transmute(before.sa_sigaction);
                handler(signal);
            }
            None => {
                let mut default: sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, std::ptr::null_mut());
                if (*info).si_code <= 0 {
                    // Somebody sent it: nothing will be run again that raises it.
                    libc::raise(signal);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use memmap2::Mmap;

    use super::*;

    #[test]
    fn a_page_past_the_end_is_noted_and_reads_as_zeros() {
        catch_unreadable_pages().unwrap();
        let page = PAGE.load(Ordering::Acquire);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 8 * page]).unwrap();
        // SAFETY: that the file is cut off is what is tested.
        let map = unsafe { Mmap::map(&File::open(file.path()).unwrap()) }.unwrap();
        // SAFETY: as above.
        let other = unsafe { Mmap::map(&File::open(file.path()).unwrap()) }.unwrap();
        let (watched, unharmed) = (Watched::new(&map), Watched::new(&other));
        assert_eq!((map[3 * page], watched.lost()), (7, None));
        file.as_file().set_len(2 * page as u64).unwrap();
        let read: Vec<u8> = std::thread::scope(|scope| {
            let reader = |at: usize| {
                scope.spawn({
                    let map = &map;
                    move || map[at * page + 5]
                })
            };
            [7, 3, 5, 1].map(reader).map(|thread| thread.join().unwrap()).to_vec()
        });
        assert_eq!(read, [0, 0, 0, 7]);
        // Which thread came first is chance, but the first byte that was touched is noted.
        assert_eq!(watched.lost(), Some(3 * page as u64));
        assert_eq!((map[2 * page], map[8 * page - 1]), (0, 0));
        assert_eq!(watched.lost(), Some(2 * page as u64));
        assert_eq!(unharmed.lost(), None);
        // An entry is used again, without what it knew.
        drop((watched, unharmed));
        assert_eq!(Watched::new(&map).lost(), None);
        // It may be asked for again.
        catch_unreadable_pages().unwrap();
    }
}
