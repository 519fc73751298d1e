//! A dump that changes while it is read: cut off, written to, replaced, or on a disk that fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may simply fail")]

mod mounted;

mod run;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mounted::Mounted;
use tensorcarve::case::CaseError;
use tensorcarve::dump::{self, Dump, DumpError, DumpErrorKind, OpenOptions};
use tensorcarve::progress::Silent;
use tensorcarve::recover::recover;
use tensorcarve::report::{self, OutputError, OutputFolder};
use tensorcarve::scan::Backend;
use tensorcarve::signature::Signatures;

const LEN: u64 = 0x4_0000;

/// A LiME dump of zeros, and then some.
fn lime(len: u64) -> Vec<u8> {
    let header = [b"EMiL\x01\0\0\0", &0x1000u64.to_le_bytes()[..], &(0xfff + len).to_le_bytes(), &[0; 8]].concat();
    [header, vec![0; len as usize - 8], vec![0xee; 8]].concat()
}

fn open(path: &Path) -> Result<Dump, DumpError> {
    dump::catch_unreadable_pages().unwrap();
    dump::open(path, &OpenOptions::default(), &|_, _| ())
}

/// The reason why nothing can be recovered from a dump.
fn refused(dump: &Dump, backend: Backend) -> DumpErrorKind {
    let Err(CaseError::Input(error)) = recover(dump, &Signatures::load(None).unwrap(), backend, &Silent) else {
        panic!("was recovered from");
    };
    assert!(error.to_string().contains("evidence.lime") && !error.reason.hint().is_empty(), "{error}");
    error.reason
}

#[test]
fn a_dump_that_is_cut_off_is_an_error_and_not_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evidence.lime");
    for (cut, backend) in [0, 1, 4096, LEN / 2, LEN + 31]
        .into_iter()
        .flat_map(|cut| Backend::available().into_iter().map(move |b| (cut, b)))
    {
        fs::write(&path, lime(LEN)).unwrap();
        let dump = open(&path).unwrap();
        dump.memory.check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let reason = refused(&dump, backend);
        assert!(
            matches!(reason, DumpErrorKind::Resized { was, now, offset }
                if was == LEN + 32 && now == cut && offset.0 == cut),
            "{reason}"
        );
    }
}

#[test]
fn zeros_in_the_place_of_a_dump_are_never_reported() {
    // Cut off between the search and the output, and made as long as before: only its time tells.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evidence.lime");
    fs::write(&path, lime(LEN)).unwrap();
    let dump = open(&path).unwrap();
    let signatures = Signatures::load(None).unwrap();
    let recovery = recover(&dump, &signatures, Backend::detect_best(), &Silent).unwrap();
    let out = dir.path().join("out");
    let folder = OutputFolder::create(&out, false).unwrap();
    let run = || run::nameless(&path);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    file.set_len(LEN + 32).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    let written = report::write(folder, &dump, &recovery, &Silent, run);
    let Err(OutputError::Input(error)) = written else { panic!("was written") };
    assert!(matches!(error.reason, DumpErrorKind::Rewritten), "{error}");
    assert!(!out.exists());
}

#[test]
fn another_file_in_its_place_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evidence.lime");
    fs::write(&path, lime(LEN)).unwrap();
    let dump = open(&path).unwrap();
    fs::write(dir.path().join("other"), b"other").unwrap();
    fs::rename(dir.path().join("other"), &path).unwrap();
    recover(&dump, &Signatures::load(None).unwrap(), Backend::detect_best(), &Silent).unwrap();
    fs::remove_file(&path).unwrap();
    dump.memory.check().unwrap();
}

#[test]
fn a_compressed_dump_must_stay_what_it_was_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evidence.lime");
    fs::write(&path, zstd::bulk::compress(&lime(LEN), 1).unwrap()).unwrap();
    let dump = open(&path).unwrap();
    dump.memory.check().unwrap();
    File::options().append(true).open(&path).unwrap().set_len(dump.file_size + 1).unwrap();
    let reason = refused(&dump, Backend::Scalar);
    assert!(
        matches!(reason, DumpErrorKind::Resized { was, now, .. } if (was, now) == (dump.file_size, dump.file_size + 1))
    );
}

/// Zeros are not written to the spool file. On a file system in memory, to read them takes room all the same.
#[test]
fn a_spool_file_that_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evidence.lime");
    // The end of a gzip file says the size of its last member only, so that the lack of room is not seen before.
    let member = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    fs::write(&path, [member(&lime(32 << 20)), member(b"end")].concat()).unwrap();
    let disk = dir.path().join("disk");
    let Some(_mounted) = Mounted::new(&disk, "size=4m") else { return };
    dump::catch_unreadable_pages().unwrap();
    let options = OpenOptions { spool_dir: Some(disk.clone()), ..OpenOptions::default() };
    let dump = dump::open(&path, &options, &|_, _| ()).unwrap();
    let reason = refused(&dump, Backend::detect_best());
    assert!(matches!(&reason, DumpErrorKind::SpoolUnreadable { dir, .. } if *dir == disk), "{reason}");
    assert!(reason.hint().contains("--spool-dir"), "{reason}");
}
