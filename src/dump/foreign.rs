//! Files that are not supported dumps: their magic numbers, their names, and how to get a dump instead.
//!
//! A raw dump has no magic number and starts with the contents of physical address 0. So a kind of file is only refused
//! if at least four rare bytes identify it, and if no boot sector, firmware or interrupt table could look like it.

use super::{DumpErrorKind, text};

/// A magic number at an offset, the kind of file that has it, and how to get a supported dump.
type Marked = (usize, &'static [u8], &'static str, &'static str);

const VIRSH: &str = "dump the running machine with `virsh dump --memory-only` or QEMU's `dump-guest-memory`";
const ELF_KDUMP: &str = "take it as ELF: `virsh dump --memory-only --format elf`, \
                         `dump-guest-memory` without -z, or `makedumpfile -E`";
const VMWARE: &str = "convert it with VMware's `vmss2core`, or pass the .vmem file beside it, which is a raw dump";
const DISK: &str = "it holds a disk, not memory; take a dump of memory with LiME, AVML or `virsh dump --memory-only`";
const WINDOWS: &str = "convert it to a raw dump first, for example with Volatility's `layerwriter`";
const EWF: &str = "unpack it with `ewfexport -f raw` first";
const AFF: &str = "unpack it to a raw dump first, with `affconvert -r` (AFF) or `aff4imager -e` (AFF4)";
const VMA: &str = "it holds disks, and memory only as a QEMU migration stream; use `dump-guest-memory FILE` in the \
                   monitor of the running machine (`qm monitor ID`)";
const HYPERV: &str = "convert it to a raw dump with a tool that uses Microsoft's VmSavedStateDumpProvider, such as \
                      LiveCloudKd, or take a dump inside the guest with LiME or AVML";
const CRIU: &str = "make ELF cores from the checkpoint with CRIU's `criu-coredump`, or restore the process and take one \
                    with `gcore`";
const INSIDE: &str = "take a dump inside the guest with LiME or AVML";
pub(super) const XEN_CORE: &str = "convert it to a raw dump with Volatility's `layerwriter`, dump the running guest with LibVMI's \
                        `vmi-dump-memory`, or take a dump inside the guest with LiME or AVML";
const NOT_LINUX: &str = "only dumps of Linux machines and processes can be read";
const PROCESS: &str = "take a core of the process with `gcore`, or let the kernel write one (`ulimit -c unlimited`)";
const SWSUSP: &str = "resume the machine and take a dump with LiME or AVML";

/// Formats of dumps, snapshots and disks that we know but do not read.
const OTHER_DUMPS: &[Marked] = &[
    (0, b"AVML", "a compressed AVML dump", "convert it with `avml-convert --format lime` first"),
    (0, b"KDUMP   ", "a compressed kdump file", ELF_KDUMP),
    (0, b"DISKDUMP", "a diskdump file", ELF_KDUMP),
    (0, b"makedumpfile\0", "a flattened kdump file", ELF_KDUMP),
    (0, b"PAGEDU64", "a Windows crash dump", WINDOWS),
    (0, b"PAGEDUMP", "a 32-bit Windows crash dump", WINDOWS),
    (0, b"hibr", "a Windows hibernation file", WINDOWS),
    (0, b"HIBR", "a Windows hibernation file", WINDOWS),
    (0, b"RSTR", "a Windows hibernation file", WINDOWS),
    (0, b"wake", "a Windows hibernation file", WINDOWS),
    (0, b"WAKE", "a Windows hibernation file", WINDOWS),
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
    (0, b"VMA\0\0\0\0\x01", "a Proxmox backup (VMA)", VMA),
    // HyperVStorage, 0x01282014; some lists of marks have the second form.
    (0, b"\x14\x20\x28\x01", "a Hyper-V saved state (.vmrs)", HYPERV),
    (0, b"\x01\x28\x21\x00", "a Hyper-V saved state (.vmrs)", HYPERV),
    (0, b"conectix", "a VHD disk", DISK),
    (0, b"vhdxfile", "a VHDX disk", DISK),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk", DISK),
    (0, b"QED\0", "a QED disk", DISK),
    (0, b"WithoutFreeSpace", "a Parallels disk", DISK),
    (0, b"WithouFreSpacExt", "a Parallels disk", DISK),
    (512, b"EFI PART", "a disk image", DISK),
    (3, b"NTFS    ", "an NTFS file system image", DISK),
    (0, b"XFSB", "an XFS file system image", DISK),
    (0, b"hsqs", "a SquashFS image", DISK),
    (0, b"LUKS\xba\xbe", "an encrypted disk (LUKS)", DISK),
    (0x8001, b"CD001", "a CD image", DISK),
    (0, b"XenSavedDomain", "a Xen save file", INSIDE),
    (0, b"LinuxGuestRecord", "a Xen save file", INSIDE),
    (0, b"Xen saved domain", "a Xen save file", INSIDE),
    (0, b"\xed\xeb\x0f\xf0", "a Xen core in the old format", XEN_CORE),
    (0, b"\xee\xeb\x0f\xf0", "a Xen core in the old format", XEN_CORE),
    // CRIU, criu/include/magic.h: IMG_COMMON_MAGIC and IMG_SERVICE_MAGIC.
    (0, b"\x19\x43\x56\x54", "a CRIU image", CRIU),
    (0, b"\x40\x59\x10\x55", "a CRIU image", CRIU),
    (0, b"minidump FreeBSD/", "a FreeBSD kernel minidump", NOT_LINUX),
    (0, b"FreeBSD Kernel Dump", "a FreeBSD kernel dump", NOT_LINUX),
    (0, b"\xed\x23\x8f\x61\x73\x01\x19\xa8", "an LKCD dump", ELF_KDUMP),
    (0, b"JAVA PROFILE 1.0.", "a Java heap dump", PROCESS),
    (0, b"EVF\x09\x0d\x0a\xff\x00", "an EWF image (E01)", EWF),
    (0, b"EVF2\x0d\x0a\x81\x00", "an EWF image (Ex01)", EWF),
    (0, b"AFF10\x0d\x0a", "an AFF image", AFF),
    (4086, b"S1SUSPEND", "a Linux hibernation image", SWSUSP),
    (4086, b"S2SUSPEND", "a Linux hibernation image", SWSUSP),
    (4086, b"LINHIB0001", "a Linux hibernation image", SWSUSP),
    (4086, b"SWAPSPACE2", "a Linux swap area", "take a dump of the memory with LiME or AVML"),
];

/// Files that hold models or data of programs, but no memory.
const NO_DUMPS: &[Marked] = &[
    (0, b"GGUF", "a GGUF file", WEIGHTS),
    (0, b"lmgg", "a GGML file", WEIGHTS),
    (0, b"tjgg", "a GGML file", WEIGHTS),
    (4, b"TFL3", "a TensorFlow Lite model", WEIGHTS),
    (0, b"\x89HDF\x0d\x0a\x1a\x0a", "an HDF5 file", WEIGHTS),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", WEIGHTS),
    // What torch.save wrote until 1.6: its magic number 0x1950a86a20f9469cfc6c as a pickle.
    (0, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "a PyTorch checkpoint in the old format", WEIGHTS),
    (0, b"PAR1", "a Parquet file", NAME_DUMP),
    (0, b"PERFILE2", "a perf recording", NAME_DUMP),
    (0, b"LPKSHHRH", "a systemd journal", NAME_DUMP),
    (0, b"\xd4\xc3\xb2\xa1", "a network capture", NAME_DUMP),
    (0, b"\x4d\x3c\xb2\xa1", "a network capture", NAME_DUMP),
    (0, b"\x0a\x0d\x0d\x0a", "a network capture", NAME_DUMP),
    (0, b"\xcf\xfa\xed\xfe", "a macOS Mach-O file", NOT_LINUX),
    (0, b"\xce\xfa\xed\xfe", "a macOS Mach-O file", NOT_LINUX),
    (514, b"HdrS", "a Linux kernel", NAME_DUMP),
];

const WEIGHTS: &str = "it is a file of values that can be loaded as it is; pass a dump of the machine, or a core of \
                       the process, that used it";
const NAME_DUMP: &str = "pass the dump itself";

/// Archives that `infer` does not know, or knows by fewer bytes than we want.
const ARCHIVES: &[(usize, &[u8], &str)] = &[
    (0, b"BZh91AY&SY", "a bzip2 file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"\x02\x21\x4c\x18", "a legacy lz4 file"),
    (0, b"\xff\x06\x00\x00sNaPpY", "a snappy stream"),
    (0, b"\x89LZO\0\x0d\x0a", "an lzop file"),
    (0, b"LRZI\0", "an lrzip file"),
    (0, b"\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff", "an lzma file"),
];

/// The kinds for which `infer` is trusted, by file extension: those with at least four rare bytes, and no executables.
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

/// Like [`ARCHIVE_KINDS`], for files that can't contain a dump.
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
    ("ods", "an OpenDocument spreadsheet"),
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

/// The platform that a minidump names (`PlatformId` of its system information), and its name. Sources:
/// minidumpapiset.h; Breakpad, `minidump_format.h` (MD_OS_*).
const MINIDUMPS: &[(u32, &str)] = &[
    (1, WINDOWS_MINIDUMP),
    (2, WINDOWS_MINIDUMP),
    (0x8101, "a minidump of a process on macOS (Crashpad or Breakpad)"),
    (0x8102, "a minidump of a process on iOS (Crashpad or Breakpad)"),
    (0x8201, LINUX_MINIDUMP),
    (0x8203, "a minidump of a process on Android (Crashpad or Breakpad)"),
    (0x8206, "a minidump of a process on Fuchsia (Crashpad)"),
];
const WINDOWS_MINIDUMP: &str = "a Windows minidump";
const LINUX_MINIDUMP: &str = "a minidump of a process on Linux (Crashpad or Breakpad)";

/// Why a file is not to be taken for a raw dump.
pub(super) fn refusal(sample: &[u8]) -> Option<DumpErrorKind> {
    let marked = |list: &'static [Marked]| {
        list.iter().find(|(offset, mark, ..)| sample.get(*offset..).is_some_and(|rest| rest.starts_with(mark)))
    };
    if let Some(part) = kdump_part(sample) {
        return Some(part);
    }
    if let Some((.., what, remedy)) = marked(OTHER_DUMPS) {
        return Some(DumpErrorKind::OtherDump { what, remedy });
    }
    if let Some((.., what, remedy)) = marked(NO_DUMPS) {
        return Some(DumpErrorKind::NoDump { what, remedy });
    }
    if let Some(refusal) = minidump(sample).or_else(|| zip(sample)) {
        return Some(refusal);
    }
    if let Some(what) = saved_by_python(sample) {
        return Some(DumpErrorKind::NoDump { what, remedy: WEIGHTS });
    }
    if let Some((.., what)) =
        ARCHIVES.iter().find(|(offset, mark, _)| sample.get(*offset..).is_some_and(|rest| rest.starts_with(mark)))
    {
        return Some(DumpErrorKind::Archive(what));
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
    text::refusal(sample)
}

/// The 32-bit number at an offset.
fn u32_at(sample: &[u8], offset: u32) -> Option<u32> {
    let bytes = sample.get(usize::try_from(offset).ok()?..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// One of the files that `makedumpfile --split` writes. Source: makedumpfile 1.7, `diskdump_mod.h`
/// (`struct disk_dump_header`, `struct kdump_sub_header`).
fn kdump_part(sample: &[u8]) -> Option<DumpErrorKind> {
    const VERSION: u32 = 8;
    const BLOCK_SIZE: u32 = 428;
    const SPLIT: u32 = 12;
    const FIRST_FRAME: u32 = 16;
    const END_FRAME: u32 = 24;
    if !sample.starts_with(b"KDUMP   ") || u32_at(sample, VERSION)? < 2 {
        return None;
    }
    let sub_header = u32_at(sample, BLOCK_SIZE)?;
    let frame = |field: u32| {
        let low = u32_at(sample, sub_header.checked_add(field)?)?;
        Some(u64::from(low) | u64::from(u32_at(sample, sub_header.checked_add(field + 4)?)?) << 32)
    };
    let is_part = u32_at(sample, sub_header.checked_add(SPLIT)?)? == 1;
    let (first, end) = (frame(FIRST_FRAME)?, frame(END_FRAME)?);
    is_part.then_some(DumpErrorKind::KdumpPart { first, end })
}

/// A minidump, named by the system that its own streams name. Sources: minidumpapiset.h (`MINIDUMP_HEADER`,
/// `MINIDUMP_DIRECTORY`, `MINIDUMP_SYSTEM_INFO`); Breakpad, `minidump_format.h`; Crashpad, `minidump_extensions.h`.
fn minidump(sample: &[u8]) -> Option<DumpErrorKind> {
    const STREAMS: u32 = 8;
    const DIRECTORY: u32 = 12;
    const ENTRY: u32 = 12;
    const MOST_STREAMS: u32 = 64;
    const SYSTEM_INFO: u32 = 7;
    const PLATFORM: u32 = 20;
    const ENTRY_OFFSET: u32 = 8;
    if !sample.starts_with(b"MDMP\x93\xa7") {
        return None;
    }
    let directory = u32_at(sample, DIRECTORY)?;
    let count = u32_at(sample, STREAMS)?.min(MOST_STREAMS);
    let streams = (0..count).filter_map(|index| {
        let entry = directory.checked_add(index * ENTRY)?;
        Some((u32_at(sample, entry)?, u32_at(sample, entry.checked_add(ENTRY_OFFSET)?)?))
    });
    let name = |(kind, offset): (u32, u32)| match kind {
        SYSTEM_INFO => {
            let platform = u32_at(sample, offset.checked_add(PLATFORM)?)?;
            MINIDUMPS.iter().find(|(known, _)| *known == platform).map(|(_, name)| *name)
        }
        // Breakpad's copies of files under /proc: cpuinfo, status, cmdline, environ, auxv, maps.
        0x4767_0003..=0x4767_0009 => Some(LINUX_MINIDUMP),
        _ => None,
    };
    let what = streams.filter_map(name).next().unwrap_or("a minidump (from Crashpad, Breakpad or Windows)");
    let remedy = if what == WINDOWS_MINIDUMP { NOT_LINUX } else { MINIDUMP };
    Some(DumpErrorKind::OtherDump { what, remedy })
}

const MINIDUMP: &str = "it holds the stacks of a process but not its objects; take a core of the process with `gcore`, or let \
                        the kernel write one (`ulimit -c unlimited`)";

/// Zip archives that are files of another kind, identified by their first entries.
fn zip(sample: &[u8]) -> Option<DumpErrorKind> {
    if !sample.starts_with(b"PK\x03\x04") {
        return None;
    }
    let holds = |text: &[u8]| sample.windows(text.len()).any(|window| window == text);
    // Names of entries: torch.save and torch.jit.save, NumPy's savez, Keras.
    if holds(b"/data.pkl") {
        return Some(DumpErrorKind::NoDump { what: "a PyTorch checkpoint", remedy: WEIGHTS });
    }
    if holds(b"model.weights.h5") {
        return Some(DumpErrorKind::NoDump { what: "a Keras model", remedy: WEIGHTS });
    }
    if holds(b"container.description") || holds(b"aff4://") {
        return Some(DumpErrorKind::OtherDump { what: "an AFF4 image", remedy: AFF });
    }
    holds(b".npyPK").then_some(())?;
    Some(DumpErrorKind::NoDump { what: "an archive of NumPy arrays (.npz)", remedy: WEIGHTS })
}

/// Weights and objects in formats without a fixed magic number.
fn saved_by_python(sample: &[u8]) -> Option<&'static str> {
    let (length, rest) = sample.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    let holds = |text: &[u8]| rest.windows(text.len()).any(|window| window == text);
    // safetensors: the length of a JSON object, of which the format allows 100 MB, then that.
    if (2..=100_000_000).contains(&length) && rest.starts_with(b"{\"") && holds(b"\"data_offsets\"") {
        return Some("a safetensors file");
    }
    // Protocols 4 and 5 begin with a frame and its length.
    let frame: Option<&[u8; 8]> = sample.get(3..).and_then(|rest| rest.first_chunk());
    let frame = frame.map_or(u64::MAX, |frame| u64::from_le_bytes(*frame));
    (matches!(*sample, [0x80, 4 | 5, 0x95, ..]) && (4..1 << 40).contains(&frame))
        .then_some("a pickle of Python objects")
}

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
