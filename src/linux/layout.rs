//! Offsets of members in the kernel's structures, in bytes: from BTF, or inferred.
//!
//! Members that were renamed or moved have alternatives. A member that a kernel lacks is `None`.

use super::btf::Btf;
use crate::layout::LayoutSource;

macro_rules! layouts {
    ($($(#[$doc:meta])* $group:ident: $type:ident = $structure:literal { $($member:ident: $($path:literal)|+,)+ })+) => {
        $(
            #[doc = concat!("Offsets in `struct ", $structure, "`.")]
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct $type {
                $(
                    #[doc = concat!("`", $($path, "` `",)+ "`")]
                    pub $member: Option<u64>,
                )+
            }
        )+

        /// Offsets in the structures that are read.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Layout {
            /// The source of the numbers.
            pub source: LayoutSource,
            $(
                #[doc = concat!("`struct ", $structure, "`.")]
                pub $group: $type,
            )+
            /// Sizes and counts.
            pub sizes: Sizes,
        }

        impl Layout {
            /// A layout without any numbers.
            pub(super) fn empty(source: LayoutSource) -> Self {
                Self { source, $($group: $type::default(),)+ sizes: Sizes::default() }
            }

            fn members_of(btf: &Btf<'_>) -> Self {
                $(
                    let structure = btf.structure($structure);
                    let offset = |path: &str| Some(btf.member(structure?, path)?.offset);
                    let $group = $type { $($member: [$($path),+].into_iter().find_map(offset),)+ };
                )+
                Self { source: LayoutSource::Btf, $($group,)+ sizes: Sizes::default() }
            }
        }
    };
}

layouts! {
    /// Source: include/linux/sched.h (`state` until 5.13, `start_boottime` since 5.5).
    task: TaskLayout = "task_struct" {
        tasks: "tasks",
        mm: "mm",
        pid: "pid",
        tgid: "tgid",
        comm: "comm",
        flags: "flags",
        state: "__state" | "state",
        exit_state: "exit_state",
        stack: "stack",
        real_parent: "real_parent",
        group_leader: "group_leader",
        thread_node: "thread_node",
        signal: "signal",
        cred: "cred",
        fs: "fs",
        start_time: "start_boottime" | "real_start_time",
        fs_base: "thread.fsbase",
        gs_base: "thread.gsbase",
        on_cpu: "on_cpu",
    }
    /// Source: include/linux/sched/signal.h.
    signal: SignalLayout = "signal_struct" { thread_head: "thread_head", }
    /// Source: include/linux/cred.h.
    cred: CredLayout = "cred" { uid: "uid", }
    /// Source: include/linux/mm_types.h (`mmap` until 6.0, `mm_mt` since 6.1).
    mm: MmLayout = "mm_struct" {
        pgd: "pgd",
        owner: "owner",
        mmap: "mmap",
        root: "mm_mt.ma_root",
        arg_start: "arg_start",
        arg_end: "arg_end",
        env_start: "env_start",
        env_end: "env_end",
        saved_auxv: "saved_auxv",
        exe_file: "exe_file",
        start_stack: "start_stack",
        start_brk: "start_brk",
        brk: "brk",
        vdso: "context.vdso",
    }
    /// Source: include/linux/mm_types.h.
    vma: VmaLayout = "vm_area_struct" {
        start: "vm_start",
        end: "vm_end",
        mm: "vm_mm",
        flags: "vm_flags",
        pgoff: "vm_pgoff",
        file: "vm_file",
        ops: "vm_ops",
        private_data: "vm_private_data",
        next: "vm_next",
        anon_name: "anon_name",
        shared: "shared",
    }
    /// Source: include/linux/mm.h.
    vm_ops: VmOpsLayout = "vm_operations_struct" { name: "name", }
    /// Source: include/linux/mm_types.h.
    special: SpecialMappingLayout = "vm_special_mapping" { name: "name", }
    /// Source: include/linux/mm_types.h (since 5.17).
    anon_name: AnonNameLayout = "anon_vma_name" { name: "name", }
    /// Source: include/linux/maple_tree.h.
    range64: Range64Layout = "maple_range_64" { pivot: "pivot", slot: "slot", }
    /// Source: include/linux/maple_tree.h.
    arange64: Arange64Layout = "maple_arange_64" { pivot: "pivot", slot: "slot", }
    /// Source: include/linux/maple_tree.h.
    maple: MapleLayout = "maple_node" { range64: "mr64", arange64: "ma64", }
    /// Source: include/linux/fs.h.
    file: FileLayout = "file" { mnt: "f_path.mnt", dentry: "f_path.dentry", inode: "f_inode", }
    /// Source: include/linux/dcache.h.
    dentry: DentryLayout = "dentry" {
        parent: "d_parent",
        name: "d_name.name",
        len: "d_name.len",
        hash: "d_hash.pprev",
        ops: "d_op",
        sb: "d_sb",
    }
    /// Source: include/linux/dcache.h.
    dentry_ops: DentryOpsLayout = "dentry_operations" { dname: "d_dname", }
    /// Source: fs/mount.h.
    mount: MountLayout = "mount" { mnt: "mnt", parent: "mnt_parent", mountpoint: "mnt_mountpoint", }
    /// Source: include/linux/mount.h.
    vfsmount: VfsMountLayout = "vfsmount" { root: "mnt_root", }
    /// Source: include/linux/fs_struct.h.
    fs: FsLayout = "fs_struct" { mnt: "root.mnt", dentry: "root.dentry", }
    /// Source: include/linux/fs.h.
    super_block: SuperBlockLayout = "super_block" { magic: "s_magic", dev: "s_dev", }
    /// Source: include/linux/fs.h.
    inode: InodeLayout = "inode" { number: "i_ino", sb: "i_sb", }
}

/// Sizes of structures in bytes, and numbers of elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// `sizeof(struct task_struct)`.
    pub task: Option<u64>,
    /// `sizeof(struct pt_regs)`.
    pub pt_regs: Option<u64>,
    /// Bytes of `mm_struct.saved_auxv`.
    pub saved_auxv: Option<u64>,
    /// Bytes of `task_struct.__state` or `state`: it was a `long` until 5.13.
    pub state: Option<u64>,
    /// Slots of `maple_range_64` and `maple_arange_64`.
    pub maple_slots: [Option<u64>; 2],
}

impl Layout {
    /// The layout from a kernel's BTF.
    pub(super) fn of_btf(btf: &Btf<'_>) -> Self {
        let member = |structure: &str, path: &str| btf.member(btf.structure(structure)?, path);
        let size = |structure: &str| btf.size(btf.structure(structure)?);
        let size_of = |structure: &str, path: &str| btf.size(member(structure, path)?.type_id);
        let slots = |structure: &str| btf.elements(member(structure, "slot")?.type_id);
        let sizes = Sizes {
            task: size("task_struct"),
            pt_regs: size("pt_regs"),
            saved_auxv: size_of("mm_struct", "saved_auxv"),
            state: size_of("task_struct", "__state").or_else(|| size_of("task_struct", "state")),
            maple_slots: ["maple_range_64", "maple_arange_64"].map(slots),
        };
        Self { sizes, ..Self::members_of(btf) }
    }
}
