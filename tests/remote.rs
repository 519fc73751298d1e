//! A dump that lies elsewhere, in shards: the same result as from the file, with a small part of it read here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may simply fail")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tensorcarve::case::{Case, Options};
use tensorcarve::dump::{self, Dump, DumpErrorKind, OpenOptions, Remote, RemoteOptions, ShardQuestion};
use tensorcarve::progress::Silent;
use tensorcarve::report::{self, OutputFolder, Run};
use tensorcarve::shard::Shard;
use tensorcarve::signature::Signatures;

/// Who has a file, in this process.
struct Loopback {
    file: File,
    /// By where they begin.
    shards: Mutex<HashMap<u64, Arc<Shard>>>,
    read: AtomicU64,
    reads: AtomicUsize,
    answered: AtomicU64,
    /// From how many readings on nothing is read any more.
    fails_after: usize,
}

impl Loopback {
    fn new(path: &Path) -> Self {
        Self {
            file: File::open(path).unwrap(),
            shards: Mutex::default(),
            read: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            fails_after: usize::MAX,
        }
    }

    fn part(&self, part: &Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (part.end - part.start) as usize];
        self.file.read_exact_at(&mut bytes, part.start).unwrap();
        bytes
    }
}

impl Remote for Loopback {
    fn read(&self, parts: &[Range<u64>]) -> Result<Vec<Vec<u8>>, String> {
        if self.reads.fetch_add(1, Ordering::Relaxed) >= self.fails_after {
            return Err("the line is down".to_owned());
        }
        let bytes: Vec<Vec<u8>> = parts.iter().map(|part| self.part(part)).collect();
        self.read.fetch_add(bytes.iter().map(|bytes| bytes.len() as u64).sum(), Ordering::Relaxed);
        Ok(bytes)
    }

    fn ask(&self, questions: Vec<ShardQuestion>, answered: &(dyn Fn(usize) + Sync)) -> Result<Vec<Vec<u8>>, String> {
        let answer = |(index, ShardQuestion { part, question }): (usize, ShardQuestion)| {
            let new = || Arc::new(Shard::new(self.part(&part)).unwrap());
            let shard = Arc::clone(self.shards.lock().unwrap().entry(part.start).or_insert_with(new));
            let answer = shard.answer(&question)?;
            self.answered.fetch_add(answer.len() as u64, Ordering::Relaxed);
            answered(index);
            Ok(answer)
        };
        questions.into_iter().enumerate().map(answer).collect()
    }
}

fn options(shard: u64) -> RemoteOptions {
    RemoteOptions { open: OpenOptions::default(), shard }
}

fn open(remote: &Arc<Loopback>, shard: u64) -> Result<Dump, DumpErrorKind> {
    let size = remote.file.metadata().unwrap().len();
    let remote = Arc::clone(remote) as Arc<dyn Remote>;
    dump::open_remote(remote, Path::new("elsewhere"), size, &options(shard)).map_err(|error| error.reason)
}

/// What is written of a dump: all files but the manifest, by their paths in the folder.
fn recover(dump: Dump) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let case = Case::new(dump, Signatures::load(None).unwrap(), Options::default());
    let recovery = case.recovery().map_err(|error| error.to_string())?;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let run = || Run {
        arguments: Vec::new(),
        backend: String::new(),
        backend_reason: String::new(),
        warnings: Vec::new(),
        threads: 1,
        input: PathBuf::new(),
        hashes: Vec::new(),
        started: SystemTime::now(),
        phases: Vec::new(),
    };
    let out = OutputFolder::create(&path, false).unwrap();
    report::write(out, case.dump(), &recovery, &Silent, run).map_err(|error| error.to_string())?;
    let mut files = BTreeMap::new();
    let mut folders = vec![path.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.file_name() != Some("manifest.json".as_ref()) {
                files.insert(entry.strip_prefix(&path).unwrap().to_owned(), fs::read(&entry).unwrap());
            }
        }
    }
    Ok(files)
}

fn unpacked(packed: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut decoder = zstd::Decoder::new(File::open(packed).unwrap()).unwrap();
    decoder.window_log_max(31).unwrap();
    std::io::copy(&mut decoder, &mut file).unwrap();
    file
}

fn check(packed: &str, shard: u64) {
    let file = unpacked(packed);
    let here = recover(dump::open(file.path(), &OpenOptions::default(), &|_, _| ()).unwrap()).unwrap();
    let remote = Arc::new(Loopback::new(file.path()));
    let elsewhere = recover(open(&remote, shard).unwrap()).unwrap();
    let counts = [&remote.read, &remote.answered].map(|count| count.load(Ordering::Relaxed));
    let (size, reads) = (file.as_file().metadata().unwrap().len(), remote.reads.load(Ordering::Relaxed));
    println!("{packed}: {size} bytes; read {} in {reads} readings, answers {}", counts[0], counts[1]);
    assert_eq!(here.keys().collect::<Vec<_>>(), elsewhere.keys().collect::<Vec<_>>());
    for (path, bytes) in &here {
        assert!(*bytes == elsewhere[path], "{} differs", path.display());
    }
    assert!(counts[0] < size / 2, "{} of {size} bytes were read here", counts[0]);
}

#[test]
fn the_shipped_dump_in_shards() {
    check("tests/data/cifar10-pdb.lime.zst", 16 << 20);
}

#[test]
fn the_shared_dump_in_shards() {
    let packed = "../shared/dumps/residual.elf.zst";
    if Path::new(packed).exists() {
        check(packed, 64 << 20);
    } else {
        println!("skipped: {packed} is not there");
    }
}
