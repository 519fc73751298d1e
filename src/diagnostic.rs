//! Diagnostics: what an analyst should know about a result beside the result itself, as data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::{FileOffset, PhysAddr, VirtAddr};

/// Something that an analyst should know about a result. It displays as one sentence, the hint included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// What it is about.
    pub code: Code,
    /// Where the evidence of it is.
    pub address: Option<Address>,
    /// What was found, in words.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// How a result was found: nothing is missing because of it.
    Note,
    /// Something is missing, or could be wrong.
    Warning,
}

/// An address of the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// In the memory of the dump. In a process image these are the addresses of the process.
    Physical(PhysAddr),
    /// In an address space.
    Virtual(VirtAddr),
    /// In the file.
    File(FileOffset),
}

impl From<PhysAddr> for Address {
    fn from(address: PhysAddr) -> Self {
        Self::Physical(address)
    }
}

impl From<VirtAddr> for Address {
    fn from(address: VirtAddr) -> Self {
        Self::Virtual(address)
    }
}

impl From<FileOffset> for Address {
    fn from(offset: FileOffset) -> Self {
        Self::File(offset)
    }
}

impl Diagnostic {
    /// A diagnostic without a hint.
    pub fn new(code: Code, address: Option<Address>, message: String) -> Self {
        Self { code, address, message, hint: None }
    }

    /// How much it matters.
    pub fn level(&self) -> Level {
        self.code.level()
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident = $name:literal, $level:ident;)+) => {
        /// What a diagnostic is about. The name of a code does not change between versions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $code,)+
        }

        impl Code {
            /// Its name, in lower case with hyphens.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)+
                }
            }

            /// How much its diagnostics matter.
            pub fn level(self) -> Level {
                match self {
                    $(Self::$code => Level::$level,)+
                }
            }
        }
    };
}

codes! {
    // The file.
    /// The file ends before the memory that its headers announce.
    CutOff = "cut-off", Warning;
    /// A header within the file is damaged, so that what follows it is lost.
    DamagedHeader = "damaged-header", Warning;
    /// Ranges of memory overlap.
    OverlappingRanges = "overlapping-ranges", Warning;
    /// Segments of an ELF file were left out.
    SegmentsLeftOut = "segments-left-out", Warning;
    /// Segments of an ELF file have no physical address.
    VirtualSegments = "virtual-segments", Note;
    /// A raw dump ends within a page.
    PartialPage = "partial-page", Warning;
    /// The file is a part of a split file.
    SplitFile = "split-file", Warning;
    /// The dump was copied before it was read.
    CopiedDump = "copied-dump", Note;
    /// A copy of a process's memory holds only some of its mappings.
    PartialCopy = "partial-copy", Note;
    /// The list of mapped files in a core is broken, in whole or in part.
    BrokenFileList = "broken-file-list", Warning;
    /// Mapped files are missing in the folder that was given.
    MappedFilesMissing = "mapped-files-missing", Warning;
    /// A file that was given for a mapped file is not used.
    FileNotUsed = "file-not-used", Warning;
    /// A file that was given for a mapped file is too short.
    FileTooShort = "file-too-short", Warning;
    // Address spaces.
    /// More signatures match than are examined.
    MatchesLeftOut = "matches-left-out", Warning;
    /// The physical addresses of the file's contents are unknown.
    UnknownAddresses = "unknown-addresses", Warning;
    /// The physical addresses of the file's contents were inferred from page tables.
    InferredAddresses = "inferred-addresses", Warning;
    /// Most of the dump is zeros.
    ZeroMemory = "zero-memory", Warning;
    /// The machine encrypts its memory.
    EncryptedMemory = "encrypted-memory", Note;
    /// No page-table root maps itself.
    NoSelfMap = "no-self-map", Warning;
    /// Several page-table roots show the same user memory.
    CopiedRoots = "copied-roots", Note;
    /// Page tables map more than the dump can hold.
    HostilePageTables = "hostile-page-tables", Warning;
    // The kernel.
    /// The dump is not read as that of a Linux machine.
    NoLinux = "no-linux", Warning;
    /// A list of the kernel has a broken link.
    BrokenKernelList = "broken-kernel-list", Warning;
    /// The layout of the kernel's structures is inferred.
    InferredKernelLayout = "inferred-kernel-layout", Note;
    /// A process is not in the kernel's list.
    UnlistedProcess = "unlisted-process", Warning;
    /// The memory map of a process can't be read in whole.
    BrokenMemoryMap = "broken-memory-map", Warning;
    /// A core lacks something that the process had.
    IncompleteCore = "incomplete-core", Warning;
    /// The registers of threads are those of their last entry into the kernel.
    OldRegisters = "old-registers", Note;
    // Pythons.
    /// An interpreter's own table of offsets is unsound.
    UnsoundDebugOffsets = "unsound-debug-offsets", Warning;
    /// A Python runs that is not supported.
    UnsupportedPython = "unsupported-python", Warning;
    /// A CPython runs whose classes can't be read.
    UnreadablePython = "unreadable-python", Warning;
    /// A layout of CPython was inferred.
    InferredPythonLayout = "inferred-python-layout", Warning;
    /// A Python is in an address space that belongs to no process.
    PythonWithoutProcess = "python-without-process", Warning;
    /// The state of an interpreter was not found.
    NoInterpreterState = "no-interpreter-state", Warning;
    /// The type of code objects was not found.
    NoCodeType = "no-code-type", Warning;
    /// The list of an interpreter's threads has a broken link.
    BrokenThreadList = "broken-thread-list", Warning;
    /// Variables of frames were left out.
    VariablesLeftOut = "variables-left-out", Warning;
    /// The lists of the garbage collector were not found.
    NoCollectorLists = "no-collector-lists", Warning;
    // Tensors and arrays.
    /// No layout of PyTorch reads the tensors.
    NoTensorLayout = "no-tensor-layout", Warning;
    /// A layout of PyTorch was inferred.
    InferredTensorLayout = "inferred-tensor-layout", Warning;
    /// Several layouts read tensors or arrays equally well.
    UndecidedLayout = "undecided-layout", Warning;
    /// Tensors or arrays were left out, or their bytes were, because there are too many.
    TensorsLeftOut = "tensors-left-out", Warning;
    /// The search for references to tensors and arrays stopped early.
    ReferencesLeftOut = "references-left-out", Warning;
    /// The bytes of tensors or arrays are in mapped files, which the dump lacks.
    BytesInMappedFile = "bytes-in-mapped-file", Warning;
    /// The bytes of tensors or arrays are from files that were given for mapped files.
    BytesFromFile = "bytes-from-file", Warning;
    /// The headers of a tensor can't be read.
    UnreadableTensor = "unreadable-tensor", Warning;
    /// The headers of a tensor contradict each other.
    InconsistentTensor = "inconsistent-tensor", Warning;
    /// The storage of a tensor was freed, or is too small for its elements.
    ShortStorage = "short-storage", Warning;
    /// A tensor is on the `meta` device, which has no memory.
    MetaTensor = "meta-tensor", Warning;
    /// The elements of a tensor are in other tensors.
    ElementsElsewhere = "elements-elsewhere", Warning;
    /// It is unknown where or how a tensor keeps its elements.
    UnknownElements = "unknown-elements", Warning;
    /// The dispatch keys of a tensor say that its bytes may not be its elements.
    DispatchKeys = "dispatch-keys", Warning;
    /// A tensor claims more bytes than the dump holds.
    TooLarge = "too-large", Warning;
    /// Bytes of a tensor are not in the dump.
    MissingBytes = "missing-bytes", Warning;
    /// The elements of an array are pointers to Python objects.
    ObjectArray = "object-array", Warning;
    /// A weight is packed in a C++ object that can't be read.
    PackedWeight = "packed-weight", Warning;
    /// A tensor can't be written to a safetensors file.
    NotWritten = "not-written", Warning;
    // Models and optimizers.
    /// A module can't be read.
    UnreadableModule = "unreadable-module", Warning;
    /// The class of a module can't be read.
    UnreadableClass = "unreadable-class", Warning;
    /// Names of a module's parameters, buffers or children can't be read.
    UnreadableNames = "unreadable-names", Warning;
    /// The weights of a script module may be constants in its code.
    FrozenModule = "frozen-module", Warning;
    /// `state_dict()` of a module may have entries that are not recovered.
    StateDict = "state-dict", Warning;
    /// The state of an optimizer can't be read.
    UnreadableState = "unreadable-state", Warning;
    /// Parts of a model were left out: there are too many, or they are nested too deeply.
    PartsLeftOut = "parts-left-out", Warning;
    // The work.
    /// The GPU failed, so that the CPU did the rest.
    GpuFailed = "gpu-failed", Warning;
    /// The index could not be used or written.
    IndexUnusable = "index-unusable", Warning;
    /// The hash of the dump file could not be computed.
    NoFileHash = "no-file-hash", Warning;
    /// Only the first rows are listed.
    RowsLeftOut = "rows-left-out", Warning;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_ends_the_sentence_and_comes_back_from_json() {
        let address = Some(PhysAddr(0x1000).into());
        let plain = Diagnostic::new(Code::CutOff, address, "the file is too short".to_owned());
        let hinted = Diagnostic { hint: Some("copy it again".to_owned()), ..plain.clone() };
        assert_eq!((plain.to_string(), plain.level()), ("the file is too short".to_owned(), Level::Warning));
        assert_eq!(hinted.to_string(), "the file is too short; copy it again");
        let json = serde_json::to_string(&hinted).unwrap();
        assert!(json.contains(r#""code":"cut-off","address":{"physical":"0x1000"}"#), "{json}");
        assert_eq!(serde_json::from_str::<Diagnostic>(&json).unwrap(), hinted);
    }
}
