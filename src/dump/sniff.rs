//! What a file is, by its content: a dump, a compressed file, or something else with a name.
//!
//! A raw dump has no mark of its own and starts with whatever lay at physical address 0, so only
//! kinds of file that are told by at least four rare bytes are refused, and none that a boot
//! sector, firmware or interrupt table could look like.

use std::io::Read;

use super::{Compression, DumpErrorKind, Format, elf, lime};

/// What a file looks like.
#[derive(Debug)]
pub(super) enum Kind {
    /// A dump in a container.
    Dump(Format),
    /// A compressed file that we unpack.
    Compressed(Compression),
    /// Something else, with the reason to refuse it.
    Refused(DumpErrorKind),
    /// No known mark: a raw dump, or nothing.
    Unknown,
}

/// Bytes that are looked at. Marks are in the first 4 KiB; text is told by all of them.
const SAMPLE: usize = 64 << 10;

/// A mark at an offset, what has it, and how to get a dump that we read.
type OtherDump = (usize, &'static [u8], &'static str, &'static str);

const VIRSH: &str = "dump the running machine with `virsh dump --memory-only` or QEMU's `dump-guest-memory`";
const ELF_KDUMP: &str = "take it as ELF: `virsh dump --memory-only --format elf`, \
                         `dump-guest-memory` without -z, or `makedumpfile -E`";
const VMWARE: &str = "convert it with VMware's `vmss2core`, or name the .vmem file beside it, which is a raw dump";
const DISK: &str = "it holds a disk, not memory; take a dump of memory with LiME, AVML or `virsh dump --memory-only`";
const WINDOWS: &str = "convert it to a raw dump first, for example with Volatility's `layerwriter`";
const EWF: &str = "unpack it with `ewfexport -f raw` first";
const SWSUSP: &str = "resume the machine and take a dump with LiME or AVML";

/// Formats of dumps, snapshots and disks that we know but do not read.
const OTHER_DUMPS: &[OtherDump] = &[
    (0, b"AVML", "a compressed AVML dump", "convert it with `avml-convert --format lime` first"),
    (0, b"KDUMP   ", "a compressed kdump file", ELF_KDUMP),
    (0, b"DISKDUMP", "a diskdump file", ELF_KDUMP),
    (0, b"makedumpfile\0", "a flattened kdump file", ELF_KDUMP),
    (0, b"PAGEDU64", "a Windows crash dump", WINDOWS),
    (0, b"PAGEDUMP", "a 32-bit Windows crash dump", WINDOWS),
    (0, b"MDMP\x93\xa7", "a Windows minidump", "take a dump of the whole memory instead"),
    (0, b"hibr", "a Windows hibernation file", WINDOWS),
    (0, b"HIBR", "a Windows hibernation file", WINDOWS),
    (0, b"RSTR", "a Windows hibernation file", WINDOWS),
    (0, b"\xd0\xbe\xd2\xbe", "a VMware snapshot", VMWARE),
    (0, b"\xd1\xba\xd1\xba", "a VMware snapshot", VMWARE),
    (0, b"\xd2\xbe\xd2\xbe", "a VMware snapshot", VMWARE),
    (0, b"\xd3\xbe\xd3\xbe", "a VMware snapshot", VMWARE),
    (0, b"KDMV", "a VMware disk", DISK),
    (0, b"\x7fVirtualBox SavedState", "a VirtualBox saved state", "run `VBoxManage debugvm NAME dumpvmcore` instead"),
    (0, b"<<< Oracle VM VirtualBox Disk", "a VirtualBox disk", DISK),
    (0, b"LibvirtQemud", "a libvirt save file", VIRSH),
    (0, b"QEVM\0\0", "a QEMU migration stream", VIRSH),
    (0, b"QFI\xfb", "a qcow2 image", VIRSH),
    (0, b"conectix", "a VHD disk", DISK),
    (0, b"vhdxfile", "a VHDX disk", DISK),
    (0, b"XenSavedDomain", "a Xen save file", "take a dump inside the guest with LiME or AVML"),
    (0, b"EVF\x09\x0d\x0a\xff\x00", "an EWF image (E01)", EWF),
    (0, b"EVF2\x0d\x0a\x81\x00", "an EWF image (Ex01)", EWF),
    (4086, b"S1SUSPEND", "a Linux hibernation image", SWSUSP),
    (4086, b"S2SUSPEND", "a Linux hibernation image", SWSUSP),
    (4086, b"LINHIB0001", "a Linux hibernation image", SWSUSP),
    (4086, b"SWAPSPACE2", "a Linux swap area", "take a dump of the memory with LiME or AVML"),
    (0, b"version https://git-lfs.github.com/", "a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
];

/// Archives that `infer` does not know, or knows by fewer bytes than we want.
const ARCHIVES: &[(usize, &[u8], &str)] = &[
    (0, b"BZh91AY&SY", "a bzip2 file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file of the old form"),
    (0, b"\xff\x06\x00\x00sNaPpY", "a snappy stream"),
    (0, b"\x89LZO\0\x0d\x0a", "an lzop file"),
    (0, b"LRZI\0", "an lrzip file"),
    (0, b"\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff", "an lzma file"),
];

/// What `infer` is trusted with, by the extension that it gives: kinds told by at least four rare
/// bytes, and nothing that runs.
const ARCHIVE_KINDS: &[(&str, &str)] = &[
    ("zip", "a zip archive"),
    ("tar", "a tar archive"),
    ("7z", "a 7z archive"),
    ("rar", "a rar archive"),
    ("cab", "a cabinet archive"),
    ("lz", "an lzip file"),
    ("bz3", "a bzip3 file"),
    ("cpio", "a cpio archive"),
    ("par2", "a par2 archive"),
];

/// As [`ARCHIVE_KINDS`], for files in which no dump can be.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("jpg", "a JPEG image"),
    ("jp2", "a JPEG 2000 image"),
    ("png", "a PNG image"),
    ("gif", "a GIF image"),
    ("webp", "a WebP image"),
    ("tif", "a TIFF image"),
    ("psd", "a Photoshop image"),
    ("heif", "a HEIF image"),
    ("avif", "an AVIF image"),
    ("djvu", "a DjVu document"),
    ("pdf", "a PDF document"),
    ("ps", "a PostScript document"),
    ("rtf", "an RTF document"),
    ("doc", "a Word document"),
    ("docx", "a Word document"),
    ("xls", "an Excel document"),
    ("xlsx", "an Excel document"),
    ("ppt", "a PowerPoint document"),
    ("pptx", "a PowerPoint document"),
    ("odt", "an OpenDocument text"),
    ("ods", "an OpenDocument sheet"),
    ("odp", "an OpenDocument presentation"),
    ("epub", "an EPUB book"),
    ("msi", "an OLE document"),
    ("mp4", "an MP4 video"),
    ("m4v", "an MP4 video"),
    ("mov", "a QuickTime video"),
    ("mkv", "a Matroska video"),
    ("webm", "a WebM video"),
    ("avi", "an AVI video"),
    ("wmv", "a Windows Media video"),
    ("flac", "a FLAC recording"),
    ("ogg", "an Ogg recording"),
    ("opus", "an Opus recording"),
    ("wav", "a WAV recording"),
    ("midi", "a MIDI file"),
    ("woff", "a web font"),
    ("woff2", "a web font"),
    ("sqlite", "an SQLite database"),
    ("deb", "a Debian package"),
    ("rpm", "an RPM package"),
    ("ar", "an ar archive of object files"),
    ("wasm", "a WebAssembly module"),
];

/// What the file with these bytes is.
pub(super) fn sniff(bytes: &[u8]) -> Kind {
    let sample = bytes.get(..SAMPLE).unwrap_or(bytes);
    if sample.starts_with(&lime::MAGIC) {
        return Kind::Dump(Format::Lime);
    }
    if sample.starts_with(&elf::MAGIC) {
        return Kind::Dump(Format::Elf);
    }
    if let Some(compression) = compression(sample) {
        return Kind::Compressed(compression);
    }
    refusal(sample).map_or(Kind::Unknown, Kind::Refused)
}

/// The compression that a file starts with, of those that we unpack.
fn compression(sample: &[u8]) -> Option<Compression> {
    match *sample {
        // A zstd frame, or a skippable one, which pzstd puts in front.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Compression::Zstd),
        // Method 8 is the only one, and the upper three flags are always 0.
        [0x1f, 0x8b, 8, 0..=0x1f, ..] => Some(Compression::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
        // Two bytes are no proof, so that we look inside.
        [0x78, check, ..] if (0x7800 + u16::from(check)) % 31 == 0 && inflates_to_lime(sample) => {
            Some(Compression::Zlib)
        }
        _ => None,
    }
}

fn inflates_to_lime(sample: &[u8]) -> bool {
    let mut start = [0; 4];
    flate2::bufread::ZlibDecoder::new(sample).read_exact(&mut start).is_ok() && start == lime::MAGIC
}

/// Why a file is not to be taken for a raw dump.
fn refusal(sample: &[u8]) -> Option<DumpErrorKind> {
    let at = |offset: usize, mark: &[u8]| sample.get(offset..).is_some_and(|s| s.starts_with(mark));
    for (offset, mark, what, remedy) in OTHER_DUMPS {
        if at(*offset, mark) {
            return Some(DumpErrorKind::OtherDump { what, remedy });
        }
    }
    for (offset, mark, what) in ARCHIVES {
        if at(*offset, mark) {
            return Some(DumpErrorKind::Archive(what));
        }
    }
    if let Some(found) = infer::get(sample) {
        let named = |list: &[(&str, &'static str)]| {
            list.iter().find(|(extension, _)| *extension == found.extension()).map(|(_, what)| *what)
        };
        if let Some(what) = named(ARCHIVE_KINDS) {
            return Some(DumpErrorKind::Archive(what));
        }
        // infer takes three bytes for a JPEG image; the fourth is a marker that may come first.
        let weak = found.extension() == "jpg" && !matches!(sample, [_, _, _, 0xc0..=0xfe, ..]);
        if let Some(what) = named(OTHER_KINDS).filter(|_| !weak) {
            return Some(DumpErrorKind::OtherFile(what));
        }
    }
    is_text(sample).then_some(DumpErrorKind::OtherFile("a text file"))
}

/// Whether a sample is text: valid UTF-8 without control characters but those of layout.
fn is_text(sample: &[u8]) -> bool {
    let text = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // A character that the end of the sample cuts in two is no sign against text.
        Err(e) if e.error_len().is_none() => {
            sample.get(..e.valid_up_to()).and_then(|s| std::str::from_utf8(s).ok()).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || "\t\n\r\x0c\x1b".contains(c))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn padded(start: &[u8]) -> Vec<u8> {
        let mut bytes = start.to_vec();
        bytes.resize(8192, 0);
        bytes
    }

    #[test]
    fn other_files_are_named() {
        let jpeg = sniff(&padded(b"\xff\xd8\xff\xe0\0\x10JFIF\0"));
        assert!(matches!(jpeg, Kind::Refused(DumpErrorKind::OtherFile("a JPEG image"))), "{jpeg:?}");
        let pdf = sniff(&padded(b"%PDF-1.7\n"));
        assert!(matches!(pdf, Kind::Refused(DumpErrorKind::OtherFile("a PDF document"))), "{pdf:?}");
        let zip = sniff(&padded(b"PK\x03\x04\x14\0\0\0\x08\0"));
        assert!(matches!(zip, Kind::Refused(DumpErrorKind::Archive("a zip archive"))), "{zip:?}");
        let bz2 = sniff(&padded(b"BZh91AY&SY"));
        assert!(matches!(bz2, Kind::Refused(DumpErrorKind::Archive("a bzip2 file"))), "{bz2:?}");
        let text = sniff("Grüße, ein Text\n".repeat(9999).as_bytes());
        assert!(matches!(text, Kind::Refused(DumpErrorKind::OtherFile("a text file"))), "{text:?}");
    }

    #[test]
    fn each_other_dump_is_named() {
        for (offset, mark, what, _) in OTHER_DUMPS {
            let mut bytes = vec![0; 8192];
            bytes[*offset..*offset + mark.len()].copy_from_slice(mark);
            let kind = sniff(&bytes);
            assert!(
                matches!(&kind, Kind::Refused(DumpErrorKind::OtherDump { what: w, .. }) if w == what),
                "{what}: {kind:?}"
            );
        }
    }

    #[test]
    fn memory_at_address_0_is_raw() {
        let interrupts = b"\x53\xff\0\xf0\x53\xff\0\xf0\xc3\xe2\0\xf0".repeat(99);
        for start in [&[][..], b"MZ\x90\0", b"\xeb\x63\x90", b"BM", b"\xff\xd8\xff\0", b"\x78\x9c\x01", &interrupts] {
            assert!(matches!(sniff(&padded(start)), Kind::Unknown), "{start:x?}");
        }
    }

    #[test]
    fn compressions_are_told_by_content() {
        let zstd = sniff(&padded(b"\x28\xb5\x2f\xfd"));
        assert!(matches!(zstd, Kind::Compressed(Compression::Zstd)));
        assert!(matches!(sniff(&padded(b"\x1f\x8b\x08\0")), Kind::Compressed(Compression::Gzip)));
        assert!(matches!(sniff(&padded(b"\xfd7zXZ\0")), Kind::Compressed(Compression::Xz)));
        let zlib = |content: &[u8]| {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        };
        assert!(matches!(sniff(&zlib(b"EMiL\x01\0\0\0")), Kind::Compressed(Compression::Zlib)));
        assert!(matches!(sniff(&zlib(&[0; 99])), Kind::Unknown));
    }
}
