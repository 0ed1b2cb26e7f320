//! FUSE requests as calls on the merged tree, and its results as replies. Nothing is decided here. [`entry`] has the replies that count
//! lookups, [`readdir`] the listings, [`copying`] the requests that take long, and [`served`] what the crate calls.

mod copying;
mod entry;
mod readdir;
pub(crate) mod served;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use crate::attr;
use crate::caller::Caller;
use crate::host_ids;
use crate::leaf::IoMode;
use crate::node::Node;
use crate::reply;
use crate::tree::Tree;
use crate::tree::file::SetAttributes;

/// How long the kernel may cache names and attributes. It may do so for as long as it likes, since nothing but its own requests changes
/// the mounted tree:
///
/// - The upper is locked by its work directory. [`msb::overlay::upper::Writer::open`] excludes every other writer, and the lock of a
///   read-only mount excludes all writers.
/// - The layers of an image are in the store, under the hash of their content. msb-pull makes them complete and never changes them.
/// - A caller's directory (`msb-pull ./DIR`) is not locked. As with overlayfs, changing it while it is mounted is not supported.
///
/// Where we change more than a request asked for, as a copy-up does, the kernel is told to forget the attributes.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);
const GENERATION: Generation = Generation(0);

/// The largest read or write request, in bytes.
pub(crate) const LARGEST_REQUEST: u32 = 1 << 20;

/// An xattr of the root with the server's process id. listxattr(2) does not show it.
pub(crate) const SERVER_XATTR: &str = "trusted.msb.server";
/// Its name for users, who cannot read the other one.
pub(crate) const SERVER_XATTR_OF_USER: &str = "user.msb.server";

/// The FUSE side of a mount.
#[derive(Debug)]
pub(crate) struct Fs {
    tree: Arc<Tree>,
    /// How many copy-ups have threads of their own.
    copying: Arc<AtomicUsize>,
}

impl Fs {
    pub(crate) fn new(tree: Tree) -> Self {
        Self { tree: Arc::new(tree), copying: Arc::default() }
    }

    fn node(&self, ino: INodeNo) -> io::Result<Arc<Node>> {
        self.tree.table.trim();
        self.tree.table.get(ino.0)
    }

    /// What a release does.
    fn releasing(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        mode: OpenAccMode,
        reply: ReplyEmpty,
    ) -> impl FnOnce() + use<> {
        let tree = self.tree.clone();
        move || reply::empty(tree.table.get(ino.0).and_then(|node| tree.release(&node, handle.0, mode)), reply)
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DONT_MASK,
            // Without FUSE_READDIRPLUS_AUTO, with which only the first part of a listing has attributes if a program reads all of
            // it before it looks at the first file, as find(1), rm(1) and tar(1) do: then each further file takes a request.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            // A handle would be stale as soon as the kernel has forgotten the file, so there are none: EOPNOTSUPP.
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ] {
            // Older kernels lack some of them. Each is for speed, or the kernel does that part itself.
            let _ = config.add_capabilities(capability);
        }
        // One level, so that an overlayfs may be stacked on the mount. Layers must not be on a stacked file system then.
        let passthrough =
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_ok();
        self.tree.passthrough.store(passthrough, Ordering::Relaxed);
        let _ = config.set_max_background(64);
        let _ = config.set_max_write(LARGEST_REQUEST);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.node(parent).and_then(|parent| self.tree.lookup(&parent, name)) {
            // Id 0 is a negative entry, which the kernel caches too.
            Ok(None) => reply.entry(&LONG, &attr::NONE, GENERATION),
            Ok(Some(node)) => self.reply_entry(Ok(node), reply),
            Err(error) => reply.error(error.into()),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, count: u64) {
        self.tree.table.forget(ino.0, count);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino).and_then(|node| Ok((self.tree.attr(&node)?, node))) {
            Ok((attr, node)) => reply.attr(&Self::attr_timeout(&node, &attr), &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some((uid, gid)) = host_ids::of_owner(uid, gid) else { return reply.error(Errno::EINVAL) };
        let requested = SetAttributes { mode, uid, gid, size, atime, mtime };
        let caller = Caller::new(req, 0);
        self.after_copy(self.node(ino), move |tree, node| {
            let set = node.and_then(|node| {
                tree.set_attributes(&node, &requested, caller)?;
                Ok((tree.attr(&node)?, node))
            });
            match set {
                Ok((attr, node)) => reply.attr(&Self::attr_timeout(&node, &attr), &attr),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino).and_then(|node| self.tree.read_link(&node)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let made =
            self.node(parent).and_then(|parent| self.tree.mknod(&parent, name, mode, rdev, Caller::new(req, umask)));
        Self::reply_made(made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.node(parent).and_then(|parent| self.tree.mkdir(&parent, name, mode, Caller::new(req, umask)));
        Self::reply_made(made, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(self.node(parent).and_then(|parent| self.tree.unlink(&parent, name)), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(self.node(parent).and_then(|parent| self.tree.rmdir(&parent, name)), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self
            .node(parent)
            .and_then(|parent| self.tree.symlink(&parent, name, target.as_os_str(), Caller::new(req, 0)));
        Self::reply_made(made, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let renamed = (|| self.tree.rename(&self.node(parent)?, name, &self.node(to)?, to_name, flags))();
        reply::empty(renamed, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reply_entry((|| self.tree.link(&self.node(ino)?, &self.node(parent)?, name))(), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = Caller::new(req, 0);
        let answer = move |tree: &Tree, node: io::Result<Arc<Node>>| {
            let flags = OFlags::from_bits_retain(flags.0 as u32);
            match node.and_then(|node| tree.open(&node, flags, caller, |file| reply.open_backing(file))) {
                Ok(mode) => {
                    let (handle, flags) = (FileHandle(mode.handle()), mode.flags());
                    match mode {
                        IoMode::Passthrough(backing) | IoMode::Direct(backing) => {
                            reply.opened_passthrough(handle, flags, &backing);
                        }
                        IoMode::Cached => reply.opened(handle, flags),
                    }
                }
                Err(error) => reply.error(error.into()),
            }
        };
        let node = self.node(ino);
        if flags.acc_mode() == OpenAccMode::O_RDONLY && flags.0 & OFlags::TRUNC.bits() as i32 == 0 {
            answer(&self.tree, node);
        } else {
            self.after_copy(node, answer);
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let flags = flags & !(OFlags::TRUNC.bits() as i32);
        let created = (|| {
            let made = self.tree.create(&self.node(parent)?, name, mode, Caller::new(req, umask))?;
            let (node, attr, _) = Self::made(made);
            let flags = OFlags::from_bits_retain(flags as u32);
            match self.tree.open(&node, flags, Caller::new(req, 0), |file| reply.open_backing(file)) {
                Ok(mode) => Ok((attr, mode)),
                Err(error) => {
                    self.tree.table.release(node);
                    Err(error)
                }
            }
        })();
        match created {
            Ok((attr, mode)) => {
                let (handle, flags) = (FileHandle(mode.handle()), mode.flags());
                match mode {
                    IoMode::Passthrough(backing) | IoMode::Direct(backing) => {
                        reply.created_passthrough(&LONG, &attr, GENERATION, handle, flags, &backing);
                    }
                    IoMode::Cached => reply.created(&LONG, &attr, GENERATION, handle, flags),
                }
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            static BLOCK: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        BLOCK.with_borrow_mut(|block| {
            let size = size as usize;
            if block.len() < size {
                block.resize(size, 0);
            }
            let block = block.get_mut(..size).unwrap_or_default();
            match self.node(ino).and_then(|node| self.tree.read(&node, offset, block)) {
                Ok(filled) => reply.data(block.get(..filled).unwrap_or_default()),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clear = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| Caller::new(req, 0));
        reply::written(self.node(ino).and_then(|node| self.tree.write(&node, offset, data, clear)), reply);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is buffered. The kernel does not send flushes after this.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply::empty(self.node(ino).and_then(|node| self.tree.sync(&node, datasync)), reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Listings need no handle. The kernel does not send opendirs after this, and caches listings.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.node(ino).and_then(|node| self.list(&node, offset, &mut reply)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.node(ino).and_then(|node| self.list_with_attributes(&node, offset, &mut reply)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply::empty(self.node(ino).and_then(|node| self.tree.sync(&node, datasync)), reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let stat = self.tree.root().and_then(|root| Ok(rustix::fs::fstatvfs(root.merged()?.top().0)?));
        match stat {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namemax).unwrap_or(255),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value, caller) = (name.to_owned(), value.to_owned(), Caller::new(req, 0));
        self.after_copy(self.node(ino), move |tree, node| {
            reply::empty(node.and_then(|node| tree.set_xattr(&node, &name, &value, flags, caller)), reply);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if ino == INodeNo::ROOT && (name == SERVER_XATTR || name == SERVER_XATTR_OF_USER && host_ids::is_host()) {
            return reply::xattr(Ok(std::process::id().to_string().into_bytes()), size, reply);
        }
        reply::xattr(self.node(ino).and_then(|node| self.tree.xattr(&node, name)), size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.node(ino).and_then(|node| self.tree.xattr_names(&node, Caller::new(req, 0)));
        reply::xattr(names, size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.after_copy(self.node(ino), move |tree, node| {
            reply::empty(node.and_then(|node| tree.remove_xattr(&node, &name)), reply);
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let allocated =
            self.node(ino).and_then(|node| self.tree.allocate(&node, mode, offset, length, Caller::new(req, 0)));
        reply::empty(allocated, reply);
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let sought = (|| {
            let offset = u64::try_from(offset).map_err(|_| rustix::io::Errno::NXIO)?;
            // linux/fs.h: SEEK_DATA is 3, SEEK_HOLE is 4; the kernel sends no others.
            let whence = if whence == 3 { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
            Ok::<_, io::Error>(rustix::fs::seek(&*self.node(ino)?.file(false)?, whence)?)
        })();
        match sought {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(error.into()),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copied = (|| {
            let (from, to) = (self.node(ino_in)?, self.node(ino_out)?);
            self.tree.copy_range((&from, offset_in), (&to, offset_out), length, Caller::new(req, 0))
        })();
        reply::written(copied, reply);
    }
}
