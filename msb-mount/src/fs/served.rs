//! The requests as the crate's threads get them. Each tells [`Readers`] when it begins and ends.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, RequestId,
    TimeOrNow, WriteFlags,
};

use super::Fs;
use crate::readers::Readers;

/// The FUSE side of a mount, and the threads that serve it.
#[derive(Debug)]
pub(crate) struct Served {
    fs: Fs,
    readers: Arc<Readers>,
}

impl Served {
    pub(crate) fn new(fs: Fs, readers: Arc<Readers>) -> Self {
        Self { fs, readers }
    }
}

/// Implements [`Filesystem`] for requests that are `brief`, or `long`: those wait for a disk or copy data.
macro_rules! requests {
    (@hand_over brief $readers:expr) => {};
    (@hand_over long $readers:expr) => { $readers.hand_over() };
    ($($kind:ident $name:ident($($argument:ident: $type:ty),*);)*) => {
        impl Filesystem for Served {
            fn init(&mut self, request: &Request, config: &mut KernelConfig) -> io::Result<()> {
                self.fs.init(request, config)
            }

            fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
                self.forget_in_batch(request, ino, count);
            }

            fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
                self.readers.serve(|| {
                    // A file that is open keeps its mode.
                    self.readers.catch_up_on(ino.0);
                    self.fs.open(request, ino, flags, reply);
                });
            }

            fn release(
                &self, _request: &Request, ino: INodeNo, handle: FileHandle, flags: OpenFlags,
                _owner: Option<LockOwner>, _flush: bool, reply: ReplyEmpty
            ) {
                let mode = flags.acc_mode();
                let release = self.fs.releasing(ino, handle, mode, reply);
                // The kernel may have to be told of changes.
                if mode == OpenAccMode::O_RDWR {
                    self.readers.serve(release);
                } else {
                    self.readers.serve_later(ino.0, release);
                }
            }

            $(fn $name(&self, request: &Request, $($argument: $type),*) {
                self.readers.serve(|| {
                    requests!(@hand_over $kind self.readers);
                    self.fs.$name(request, $($argument),*);
                });
            })*
        }
    };
}

requests! {
    brief lookup(parent: INodeNo, name: &OsStr, reply: ReplyEntry);
    brief getattr(ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr);
    brief setattr(
        ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
        atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>, handle: Option<FileHandle>,
        crtime: Option<SystemTime>, chgtime: Option<SystemTime>, bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>, reply: ReplyAttr
    );
    brief readlink(ino: INodeNo, reply: ReplyData);
    brief mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, device: u32, reply: ReplyEntry);
    brief mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
    brief unlink(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
    brief rmdir(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
    brief symlink(parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
    brief rename(parent: INodeNo, name: &OsStr, to: INodeNo, to_name: &OsStr, flags: RenameFlags, reply: ReplyEmpty);
    brief link(ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry);
    brief create(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate);
    brief read(
        ino: INodeNo, handle: FileHandle, offset: u64, size: u32, flags: OpenFlags, owner: Option<LockOwner>,
        reply: ReplyData
    );
    brief write(
        ino: INodeNo, handle: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags, flags: OpenFlags,
        owner: Option<LockOwner>, reply: ReplyWrite
    );
    brief flush(ino: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty);
    long fsync(ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty);
    brief opendir(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
    brief readdir(ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory);
    brief readdirplus(ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
    long fsyncdir(ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty);
    brief statfs(ino: INodeNo, reply: ReplyStatfs);
    brief setxattr(ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty);
    brief getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
    brief listxattr(ino: INodeNo, size: u32, reply: ReplyXattr);
    brief removexattr(ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
    brief ioctl(
        ino: INodeNo, handle: FileHandle, flags: IoctlFlags, command: u32, data: &[u8], out_size: u32,
        reply: ReplyIoctl
    );
    long fallocate(ino: INodeNo, handle: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty);
    brief lseek(ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
    long copy_file_range(
        from: INodeNo, from_handle: FileHandle, from_offset: u64, to: INodeNo, to_handle: FileHandle,
        to_offset: u64, length: u64, flags: CopyFileRangeFlags, reply: ReplyWrite
    );
}

impl Served {
    /// The kernel sends many of these as one request. The crate does not tell where that ends: the type of the argument of
    /// `Filesystem::batch_forget` is private.
    fn forget_in_batch(&self, request: &Request, ino: INodeNo, count: u64) {
        thread_local! {
            static BATCH: Cell<Option<RequestId>> = const { Cell::new(None) };
        }
        let forget = || self.fs.forget(request, ino, count);
        if BATCH.replace(Some(request.unique())) == Some(request.unique()) {
            forget();
        } else {
            self.readers.serve_first(forget);
        }
    }
}
