//! Replies of FUSE requests whose result is a value or an error of the system.

use std::io;

use fuser::{Errno, ReplyEmpty, ReplyWrite, ReplyXattr};

/// A reply without data.
pub(crate) fn empty(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

/// A reply with the number of bytes that were written.
pub(crate) fn written(length: io::Result<usize>, reply: ReplyWrite) {
    match length {
        Ok(length) => reply.written(u32::try_from(length).unwrap_or(u32::MAX)),
        Err(error) => reply.error(error.into()),
    }
}

/// A reply with an xattr, or a list of them, for a caller with a buffer of `size` bytes. With 0 it asks for the length.
pub(crate) fn xattr(value: io::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error.into()),
    }
}
