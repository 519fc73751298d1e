//! Why the output could not be written, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::dump::DumpError;

/// Why the output could not be written.
///
/// [`OutputError::hint`] says what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The path is there, and no folder.
    #[error("{}: is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The folder holds something, and nobody said `--overwrite`.
    #[error(
        "{}: is not empty", .0.display()
    )]
    NotEmpty(PathBuf),
    /// Another run is filling the folder.
    #[error(
        "{}: another run of tensorcarve is writing to this folder", .0.display()
    )]
    Busy(PathBuf),
    /// The folder holds something, but no earlier output.
    #[error(
        "{}: is not empty and has no manifest.json from tensorcarve that lists its files, so there is nothing to \
         overwrite", .0.display()
    )]
    NotOurs(PathBuf),
    /// Beside what an earlier run wrote lies something that it did not write, or that has changed since.
    #[error("{}: is not what an earlier run of tensorcarve wrote and would be lost", .0.display())]
    Foreign(PathBuf),
    /// The file is there, and nobody said `--overwrite`.
    #[error("{}: exists", .0.display())]
    Exists(PathBuf),
    /// What is there is no file that could be replaced.
    #[error("{}: is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The disk is full, or would be.
    #[error(
        "{}: not enough disk space: {} needed, {} free",
        path.display(),
        need.map_or("more bytes are".to_owned(), |need| format!("{need} bytes are")),
        free.map_or("too few are".to_owned(), |free| format!("{free} are")),
    )]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// Bytes needed in all, if that is known.
        need: Option<u64>,
        /// Bytes free to this user, if that is known.
        free: Option<u64>,
    },
    /// The system failed to do something.
    #[error("{}: cannot {doing} ({source})", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What failed, as a verb with its object.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes of a tensor are not those that were hashed before.
    #[error(
        "the bytes of {tensor:?} in model {model} have changed since they were hashed: another program is writing to the dump file"
    )]
    Changed {
        /// Id of the model.
        model: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// The file of the dump changed, or a part of it could not be read.
    #[error(transparent)]
    Input(#[from] DumpError),
    /// The header of a file of weights can't be made.
    #[error("{}: the header cannot be written ({reason})", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the format's own check said.
        reason: String,
    },
}

impl OutputError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotAFolder(..) => "choose another path with -o",
            Self::NotEmpty(..) => {
                "choose another folder with -o, or use --overwrite to replace the output of an earlier run \
                 of tensorcarve"
            }
            Self::Busy(..) => "wait for it, or choose another folder with -o",
            Self::NotOurs(..) => "choose another folder with -o",
            Self::Foreign(..) => "move it away first",
            Self::Exists(..) => "choose another file with -o, or use --overwrite to replace it",
            Self::NotAFile(..) => "choose another file with -o",
            Self::NoSpace { .. } => "free some space, or choose a folder on a larger disk with -o",
            Self::Io { source, .. } => remedy(source),
            Self::Changed { .. } => "copy it, and run on the copy",
            Self::Input(error) => error.reason.hint(),
            Self::Header { .. } => "report this as a bug",
        }
    }
}

impl OutputError {
    /// What became of `path` when the system refused to do `doing`.
    pub(super) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(source.kind(), StorageFull | QuotaExceeded) {
            let free = super::space::free(path.parent().unwrap_or(path)).ok();
            return Self::NoSpace { path: path.to_owned(), need: None, free };
        }
        Self::Io { path: path.to_owned(), doing, source }
    }
}

fn remedy(source: &io::Error) -> &'static str {
    use io::ErrorKind::{FileTooLarge, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    match source.kind() {
        PermissionDenied => "choose a folder that this user can write to with -o",
        ReadOnlyFilesystem => "choose a folder on a writable file system with -o",
        FileTooLarge => "raise the file size limit (`ulimit -f`), or choose a folder on another file system with -o",
        NotADirectory => "part of the path is a file, so choose another folder with -o",
        _ => "check the disk, or choose another folder with -o",
    }
}
