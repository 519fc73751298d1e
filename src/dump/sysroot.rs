//! Looks up a path of another machine in a folder with a copy of its files.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;

/// Maximum number of symbolic links in one lookup, as in the kernel (MAXSYMLINKS of linux/namei.h).
const MAX_LINKS: usize = 40;

/// The file that an absolute path names for a process with the root folder `root`; neither `..` nor a link leads out of
/// it. `root` itself must be free of links.
///
/// # Errors
/// The file does not exist, it can't be looked up, or the links form a cycle.
pub(super) fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut ahead: Vec<OsString> = parts(path).rev().collect();
    let mut here: Vec<OsString> = Vec::new();
    let mut links = 0;
    while let Some(part) = ahead.pop() {
        if part == ".." {
            here.pop();
            continue;
        }
        here.push(part);
        let at: PathBuf = [root.as_os_str()].into_iter().chain(here.iter().map(OsString::as_os_str)).collect();
        if fs::symlink_metadata(&at)?.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            here.pop();
            let target = fs::read_link(&at)?;
            if target.is_absolute() {
                here.clear();
            }
            ahead.extend(parts(&target).rev());
        }
    }
    Ok([root.as_os_str()].into_iter().chain(here.iter().map(OsString::as_os_str)).collect())
}

/// The names in a path, and its steps upwards.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path().canonicalize().unwrap();
        let root = outer.join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(outer.join("secret"), "outside").unwrap();
        fs::write(root.join("usr/lib/model.bin"), "inside").unwrap();
        fs::write(root.join("secret"), "the one inside").unwrap();
        symlink("/usr/lib", root.join("lib")).unwrap();
        symlink("../../../secret", root.join("usr/lib/up")).unwrap();
        symlink(outer.join("secret"), root.join("usr/lib/out")).unwrap();
        symlink("b", root.join("a")).unwrap();
        symlink("/a", root.join("b")).unwrap();
        let read = |path: &str| fs::read_to_string(resolve(&root, Path::new(path))?);
        for inside in ["/usr/lib/model.bin", "/lib/model.bin", "/usr/./lib/../lib/model.bin", "/../usr/lib/model.bin"] {
            assert_eq!(read(inside).unwrap(), "inside", "{inside}");
        }
        // As in a changed root, the way up ends at the folder.
        for up in ["/../secret", "/usr/../../../../secret", "/usr/lib/up"] {
            assert_eq!(read(up).unwrap(), "the one inside", "{up}");
        }
        for none in ["/usr/lib/out", "/a", "/usr/lib/nothing", "/secret/more"] {
            assert!(read(none).is_err(), "{none}");
        }
        assert_eq!(resolve(&root, Path::new("/")).unwrap(), root);
    }
}
