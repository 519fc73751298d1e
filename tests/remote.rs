//! A dump that lies elsewhere, in shards: the same result as from the file, with a small part of it read here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may simply fail")]

mod run;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tensorcarve::addr::PhysAddr;
use tensorcarve::case::{Case, Options};
use tensorcarve::dump::{self, Dump, DumpErrorKind, OpenOptions, Remote, RemoteOptions, ShardQuestion};
use tensorcarve::progress::Silent;
use tensorcarve::report::{self, OutputFolder};
use tensorcarve::scan;
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
        let answer = |(index, ShardQuestion { part, question, .. }): (usize, ShardQuestion)| {
            let new = || Arc::new(Shard::new(self.part(&part), part.start));
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
    let run = || run::nameless(Path::new(""));
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
    let dump = open(&remote, shard).unwrap();
    let hash = dump.memory.remote().unwrap().blake3(&|_| ()).unwrap();
    assert_eq!(hash, blake3::hash(&fs::read(file.path()).unwrap()));
    let elsewhere = recover(dump).unwrap();
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

/// A worker that is gone, or a line that is down, is an error that says so, and nothing is written.
#[test]
fn what_cannot_be_had_is_an_error() {
    let file = unpacked("tests/data/cifar10-pdb.lime.zst");
    for fails_after in [0, 1, 300] {
        let remote = Arc::new(Loopback { fails_after, ..Loopback::new(file.path()) });
        let error = match open(&remote, 64 << 20) {
            Ok(dump) => recover(dump).unwrap_err(),
            Err(reason) => reason.to_string(),
        };
        assert!(error.contains("could not be had: the line is down"), "{error}");
    }
}

#[test]
fn what_cannot_be_divided_is_refused() {
    let packed = Arc::new(Loopback::new(Path::new("tests/data/cifar10-pdb.lime.zst")));
    match open(&packed, 64 << 20) {
        Err(error @ DumpErrorKind::Indivisible { .. }) => assert!(error.hint().contains("unpack it"), "{error}"),
        _ => panic!("a compressed dump was divided"),
    }
}

/// A LiME file with ranges that begin and end within frames, and `word` at many places, among them the borders of shards.
fn odd_dump(shard: u64, word: &[u8]) -> tempfile::NamedTempFile {
    let mut file = Vec::new();
    let mut state = 1u64;
    for (start, len) in
        [(0x1000u64, 3 * shard + 0x400), (0x80_0123, shard + 0x777), (0x100_0ff8, 8), (0x200_0000, 2 * shard + 1)]
    {
        file.extend(b"EMiL\x01\0\0\0");
        file.extend([start, start + len - 1, 0].map(u64::to_le_bytes).concat());
        let range: Vec<u8> = (0..len)
            .map(|at| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Zero frames and some that look like page tables.
                match at / 4096 % 4 {
                    0 => 0,
                    1 if at % 8 > 0 => 0,
                    1 => 0x67,
                    _ => (state >> 56) as u8,
                }
            })
            .collect();
        file.extend(range);
    }
    let border = (shard..file.len() as u64).step_by(shard as usize);
    for (number, at) in border.enumerate() {
        let at = at as usize - (5 * number + 3) % (word.len() + 2);
        file[at..at + word.len()].copy_from_slice(word);
    }
    let dump = tempfile::NamedTempFile::new().unwrap();
    fs::write(dump.path(), file).unwrap();
    dump
}

/// What lies across the border of two shards is found once, and frames have the classes that they have in the file.
#[test]
fn borders_of_shards_hide_nothing() {
    let shard = 1 << 16;
    let word = b"a word that is longer than most, and so crosses borders";
    let dump = odd_dump(shard, word);
    let needle = format!("[[needle]]\nname = \"word\"\ntext = {:?}\n", str::from_utf8(word).unwrap());
    let builtin = Signatures::load(None).unwrap();
    let mut files = vec![("needle.toml".to_owned(), needle)];
    for name in ["cpython.toml", "x86_64.toml"] {
        files.extend(fs::read_to_string(Path::new("signatures").join(name)).map(|text| (name.to_owned(), text)));
    }
    let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let signatures = Signatures::from_texts(texts).unwrap();
    let signatures =
        signatures.mmu().map_or_else(|| signatures.with_mmu(builtin.mmu().unwrap().clone()), |_| signatures.clone());
    let here = dump::open(dump.path(), &OpenOptions::default(), &|_, _| ()).unwrap().memory;
    let remote = Arc::new(Loopback::new(dump.path()));
    let elsewhere = open(&remote, shard).unwrap().memory;
    assert_eq!(here.ranges(), elsewhere.ranges());
    let [found, found_elsewhere] =
        [&here, &elsewhere].map(|memory| scan::scan(memory, &signatures, scan::Backend::detect_best(), &|_| ()));
    assert!(found.hits.len() >= 5, "{:?}", found.hits);
    assert!(found.frames.with(0xff).count() > 10);
    assert!(found == found_elsewhere);
    let values = scan::PointerSet::new(&[0x67, u64::from_le_bytes(word[..8].try_into().unwrap())]);
    let all = [PhysAddr(0)..here.end()];
    let [swept, swept_elsewhere] =
        [&here, &elsewhere].map(|memory| scan::sweep(memory, &all, &values, scan::Backend::detect_best(), &|_| ()));
    assert!(swept.len() > 1000);
    assert!(swept == swept_elsewhere);
    // Any bytes, wherever they lie.
    for range in here.ranges() {
        for (start, len) in
            [(range.start.0, 1), (range.end.0 - 8, 8), (range.start.0, range.len()), (range.end.0 - 1, 2)]
        {
            assert!(here.bytes(PhysAddr(start), len) == elsewhere.bytes(PhysAddr(start), len));
        }
    }
}
