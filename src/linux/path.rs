//! Paths of files, from the kernel's directory entries and mounts.
//!
//! They are built as in fs/d_path.c: the names of directory entries up to the root of the mount, then from its mount point up to
//! the root directory of the process.

use super::kernel::Kernel;
use super::layout::Layout;
use crate::addr::VirtAddr;

/// Maximum number of names and mounts between a file and the root directory. A path has up to 4,096 bytes (`PATH_MAX`).
const MAX_STEPS: usize = 4096;
const MAX_PATH: usize = 4096;
/// Maximum size of a name in bytes, with its NUL (`NAME_MAX` of include/uapi/linux/limits.h).
const MAX_NAME: usize = 256;

/// File systems without directories, by `super_block.s_magic` (include/uapi/linux/magic.h).
const ANON_INODE: u64 = 0x0904_1934;
const PIPE: u64 = 0x5049_5045;
const SOCKET: u64 = 0x534f_434b;
const DMA_BUFFER: u64 = 0x444d_4142;

/// A directory entry in a mount (`struct path`).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    mnt: VirtAddr,
    dentry: VirtAddr,
}

/// The files of a process.
pub(super) struct Paths<'k> {
    kernel: &'k Kernel,
    layout: &'k Layout,
    /// Its root directory.
    root: Option<Place>,
}

impl<'k> Paths<'k> {
    /// The files of the process that a task belongs to.
    pub(super) fn new(kernel: &'k Kernel, layout: &'k Layout, task: VirtAddr) -> Self {
        let place = |fs: VirtAddr| {
            let (mnt, dentry) = (kernel.pointer(fs, layout.fs.mnt?)?, kernel.pointer(fs, layout.fs.dentry?)?);
            Some(Place { mnt, dentry })
        };
        let fs = layout.task.fs.and_then(|offset| kernel.pointer(task, offset));
        Self { kernel, layout, root: fs.and_then(place) }
    }

    /// The path of a `struct file`. Bytes that are not UTF-8 are replaced.
    pub(super) fn of_file(&self, file: VirtAddr) -> Option<String> {
        let of = &self.layout.file;
        let (mnt, dentry) = (self.kernel.pointer(file, of.mnt?)?, self.kernel.pointer(file, of.dentry?)?);
        let place = Place { mnt, dentry };
        let path = if self.makes_its_name(place) { self.made_name(place, file)? } else { self.path(place)? };
        Some(String::from_utf8_lossy(&path).into_owned())
    }

    fn parent(&self, dentry: VirtAddr) -> Option<VirtAddr> {
        self.kernel.pointer(dentry, self.layout.dentry.parent?)
    }

    fn mount_root(&self, mnt: VirtAddr) -> Option<VirtAddr> {
        self.kernel.pointer(mnt, self.layout.vfsmount.root?)
    }

    fn name(&self, dentry: VirtAddr) -> Option<Vec<u8>> {
        let of = &self.layout.dentry;
        let name = self.kernel.text(self.kernel.pointer(dentry, of.name?)?, MAX_NAME)?;
        let len = self.kernel.u32(dentry, of.len?)?;
        (name.len() == len as usize).then_some(name)
    }

    /// Whether the file is in no directory: its file system generates a name (`d_op->d_dname`).
    fn makes_its_name(&self, place: Place) -> bool {
        let made = || {
            let ops = self.kernel.pointer(place.dentry, self.layout.dentry.ops?)?;
            self.kernel.pointer(ops, self.layout.dentry_ops.dname?)
        };
        let is_root = self.parent(place.dentry) == Some(place.dentry);
        made().is_some() && (!is_root || self.mount_root(place.mnt) != Some(place.dentry))
    }

    /// The name that a file system without directories generates.
    fn made_name(&self, place: Place, file: VirtAddr) -> Option<Vec<u8>> {
        let sb = self.layout.dentry.sb.and_then(|offset| self.kernel.pointer(place.dentry, offset));
        let magic = sb.and_then(|sb| self.kernel.u64(sb, self.layout.super_block.magic?));
        let numbered = |what: &str| {
            let inode = self.kernel.pointer(file, self.layout.file.inode?)?;
            let number = self.kernel.u64(inode, self.layout.inode.number?)?;
            Some(format!("{what}:[{number}]").into_bytes())
        };
        match magic {
            Some(PIPE) => numbered("pipe"),
            Some(SOCKET) => numbered("socket"),
            Some(ANON_INODE) => Some([b"anon_inode:", self.name(place.dentry)?.as_slice()].concat()),
            Some(DMA_BUFFER) => Some([b"/dmabuf:", self.name(place.dentry)?.as_slice()].concat()),
            // simple_dname: memfd, shared memory.
            _ => Some([b"/", self.name(place.dentry)?.as_slice(), b" (deleted)"].concat()),
        }
    }

    fn path(&self, file: Place) -> Option<Vec<u8>> {
        let of = &self.layout.mount;
        let mut at = file;
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut len = 0;
        for _ in 0..MAX_STEPS {
            if self.root == Some(at) {
                return self.joined(file, names);
            }
            let parent = self.parent(at.dentry)?;
            if self.mount_root(at.mnt) == Some(at.dentry) {
                let mount = VirtAddr(at.mnt.0.checked_sub(of.mnt?)?);
                let above = self.kernel.pointer(mount, of.parent?)?;
                if above == mount {
                    return self.joined(file, names);
                }
                let mountpoint = self.kernel.pointer(mount, of.mountpoint?)?;
                at = Place { mnt: above.checked_add(of.mnt?)?, dentry: mountpoint };
            } else if parent == at.dentry {
                // The mount was removed meanwhile: only this part of the path is known.
                return self.joined(file, names);
            } else {
                let name = self.name(at.dentry)?;
                len += name.len() + 1;
                if len > MAX_PATH {
                    return None;
                }
                names.push(name);
                at.dentry = parent;
            }
        }
        None
    }

    fn joined(&self, file: Place, names: Vec<Vec<u8>>) -> Option<Vec<u8>> {
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            path.push(b'/');
            path.extend(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        // d_unlinked: the file was deleted from its directory.
        let is_root = self.parent(file.dentry) == Some(file.dentry);
        if !is_root && self.kernel.u64(file.dentry, self.layout.dentry.hash?)? == 0 {
            path.extend(b" (deleted)");
        }
        Some(path)
    }
}
