//! Unpacks a compressed dump, or copies one that can't be mapped, into a spool file, which is then mapped like any other.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::unpacked_size::unpacked_size;
use super::{Compression, DumpErrorKind};
use crate::addr::FileOffset;

/// Bytes in a buffer on its way from the decoder to the disk.
const BUFFER: usize = 1 << 20;
/// Buffers on the way: one is filled while another is written, and two wait for the slower side.
const BUFFERS: usize = 4;
/// Bytes that are not written where they are all zeros: a multiple of any file system's block.
const SPARSE: usize = 64 << 10;
/// Bytes of input that the decoder is given at a time, and that progress is told after.
const INPUT: usize = 256 << 10;
/// The most memory that the xz decoder may take: more than its largest dictionary, 1.5 GiB.
const XZ_MEMORY: u64 = 2 << 30;
/// The largest window of a zstd frame, as a power of two: what `zstd --ultra --long=31` writes.
const ZSTD_WINDOW: u32 = 31;

/// Unpacks `input` into a new file in `dir`.
///
/// The file has no name, from the start on where the system can do so: it is gone as soon as
/// nobody has it open or mapped, however this process ends, and nobody else can open it.
/// `progress` is told the bytes of `input` that are used up, and how many there are.
pub(super) fn unpack(
    compression: Compression,
    input: &[u8],
    dir: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<File, DumpErrorKind> {
    let expected = unpacked_size(compression, input).unwrap_or(0);
    let (file, free) = create(dir, expected)?;
    let consumed = Cell::new(0);
    let meter = Meter { input, consumed: &consumed, progress };
    let mut decoder = decoder(compression, meter).map_err(|source| damaged(compression, 0, source))?;
    match pump(&mut *decoder, &file) {
        Ok(_) => Ok(file),
        Err(Failure::Decode { source, unpacked }) if source.kind() == io::ErrorKind::UnexpectedEof => {
            Err(DumpErrorKind::TruncatedCompression { compression, consumed: consumed.get(), unpacked })
        }
        Err(Failure::Decode { source, .. }) => Err(damaged(compression, consumed.get(), source)),
        Err(Failure::Write { source, written }) => Err(write_error(dir, source, expected.max(written), free)),
    }
}

/// Copies a file that the system reads, but does not map, into a new file in `dir`, as [`unpack`] makes one.
pub(super) fn copy(mut input: &File, dir: &Path, progress: &dyn Fn(u64, u64)) -> Result<File, DumpErrorKind> {
    let unreadable = |source| DumpErrorKind::Io { doing: "read", source };
    let size = input.seek(SeekFrom::End(0)).map_err(unreadable)?;
    input.rewind().map_err(unreadable)?;
    let (file, free) = create(dir, size)?;
    match pump(&mut Copied { input, done: 0, size, progress }, &file) {
        Ok(_) => Ok(file),
        Err(Failure::Decode { source, .. }) => Err(unreadable(source)),
        Err(Failure::Write { source, written }) => Err(write_error(dir, source, size.max(written), free)),
    }
}

/// A nameless file in `dir`, where there must be room for `need` bytes, and the bytes free there.
fn create(dir: &Path, need: u64) -> Result<(File, u64), DumpErrorKind> {
    let free = free_space(dir).map_err(|source| spool_error(dir, source))?;
    if need > free {
        return Err(DumpErrorKind::SpoolSpace { dir: dir.to_owned(), need, free });
    }
    let file = tempfile::tempfile_in(dir).map_err(|source| spool_error(dir, source))?;
    Ok((file, free))
}

/// A file that is copied, and counted as it is read.
struct Copied<'a> {
    input: &'a File,
    done: u64,
    size: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Read for Copied<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.done += n as u64;
        (self.progress)(self.done.min(self.size), self.size);
        Ok(n)
    }
}

/// A decoder of all frames, members or streams of a file.
fn decoder<'a>(compression: Compression, input: Meter<'a>) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Zlib => Box::new(flate2::bufread::ZlibDecoder::new(input)),
    })
}

/// The input, handed out in pieces and counted as it is used up.
struct Meter<'a> {
    input: &'a [u8],
    consumed: &'a Cell<u64>,
    progress: &'a dyn Fn(u64, u64),
}

impl Meter<'_> {
    fn rest(&self) -> &[u8] {
        self.input.get(self.consumed.get() as usize..).unwrap_or_default()
    }
}

impl Read for Meter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.rest().read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Meter<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let rest = self.rest();
        // Up to the next multiple, so that progress is told once per piece.
        let piece = INPUT - self.consumed.get() as usize % INPUT;
        Ok(rest.get(..piece).unwrap_or(rest))
    }

    fn consume(&mut self, n: usize) {
        let (before, total) = (self.consumed.get(), self.input.len() as u64);
        let after = (before + n as u64).min(total);
        self.consumed.set(after);
        if after / INPUT as u64 != before / INPUT as u64 || (after == total && before != total) {
            (self.progress)(after, total);
        }
    }
}

/// Which side failed, with the bytes that it got to.
enum Failure {
    Decode { source: io::Error, unpacked: u64 },
    Write { source: io::Error, written: u64 },
}

/// Moves all that `decoder` gives into `file`: decodes on this thread, writes on another. Gives the
/// number of bytes.
fn pump(decoder: &mut dyn Read, file: &File) -> Result<u64, Failure> {
    thread::scope(|scope| {
        let (full, to_write) = sync_channel::<Vec<u8>>(BUFFERS);
        let (emptied, empty) = sync_channel::<Vec<u8>>(BUFFERS);
        let writer = scope.spawn(move || write_all(file, &to_write, &emptied));
        let decoded = decode_all(decoder, &full, &empty);
        // Tells the writer that this was all.
        drop(full);
        let written = match writer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // The writer's failure first: it is the cause when the decoder stops for want of a taker.
        match (written, decoded) {
            (Err((source, written)), _) => Err(Failure::Write { source, written }),
            (Ok(unpacked), Err(source)) => Err(Failure::Decode { source, unpacked }),
            (Ok(unpacked), Ok(())) => Ok(unpacked),
        }
    })
}

fn decode_all(decoder: &mut dyn Read, full: &SyncSender<Vec<u8>>, empty: &Receiver<Vec<u8>>) -> io::Result<()> {
    let mut spare = BUFFERS;
    loop {
        let mut buffer = match spare.checked_sub(1) {
            Some(less) => {
                spare = less;
                vec![0; BUFFER]
            }
            // No taker left: the writer has failed, and says why.
            None => match empty.recv() {
                Ok(buffer) => buffer,
                Err(_) => return Ok(()),
            },
        };
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        let mut outcome = Ok(());
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match decoder.read(room) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        buffer.truncate(filled);
        let last = filled < BUFFER;
        if (filled > 0 && full.send(buffer).is_err()) || last {
            return outcome;
        }
    }
}

/// Writes buffers in their order, but for blocks of zeros, which a new file holds anyway.
fn write_all(
    mut file: &File,
    to_write: &Receiver<Vec<u8>>,
    emptied: &SyncSender<Vec<u8>>,
) -> Result<u64, (io::Error, u64)> {
    let mut position = 0u64;
    // Where the file's cursor is: behind `position` after zeros.
    let mut cursor = 0u64;
    for buffer in to_write {
        // Runs of blocks that are not zeros go out in one piece.
        for run in buffer.chunks(SPARSE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            if !run.first().is_some_and(|block| is_zero(block)) {
                let mut put = || -> io::Result<()> {
                    if cursor != position {
                        file.seek(SeekFrom::Start(position))?;
                    }
                    run.iter().try_for_each(|block| file.write_all(block))
                };
                put().map_err(|e| (e, position))?;
                cursor = position + len as u64;
            }
            position += len as u64;
        }
        // Nobody takes it back once all is decoded.
        let _ = emptied.send(buffer);
    }
    file.set_len(position).map_err(|e| (e, position))?;
    Ok(position)
}

fn is_zero(block: &[u8]) -> bool {
    // In pieces, so that memory is left at its first byte that is not zero, and each is vectorised.
    block.chunks(256).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Bytes that this user may still write into `dir`.
fn free_space(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn is_no_space(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

fn write_error(dir: &Path, source: io::Error, need: u64, free: u64) -> DumpErrorKind {
    if is_no_space(&source) {
        return DumpErrorKind::SpoolSpace { dir: dir.to_owned(), need, free };
    }
    spool_error(dir, source)
}

fn spool_error(dir: &Path, source: io::Error) -> DumpErrorKind {
    DumpErrorKind::Spool { dir: dir.to_owned(), source }
}

fn damaged(compression: Compression, offset: u64, source: io::Error) -> DumpErrorKind {
    DumpErrorKind::DamagedCompression { compression, offset: FileOffset(offset), source }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
