//! Blocking reads and writes on the caller's files. O_NONBLOCK belongs to the open file, not to this process, and another process
//! that shares the file may have set it: rsync does so with its pipes.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Reads available bytes, and waits if there are none; 0 at end-of-file.
///
/// # Errors
/// Those of `read(2)`.
pub fn read(from: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&from, &mut *into) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(&from, PollFlags::IN)?,
            other => return Ok(other?),
        }
    }
}

/// Writes all bytes, and waits while there is no room.
///
/// # Errors
/// Those of `write(2)`.
pub fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(&to, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(file: impl AsFd, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(&file, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_nonblocking_file_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let much = vec![7u8; 4 << 20];
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            (&mut theirs).take(4 << 20).read_to_end(&mut got).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
            rustix::io::write(&theirs, b"answer").unwrap();
            got
        });
        write_all(&ours, &much).unwrap();
        let mut block = [0u8; 16];
        assert_eq!(read(&ours, &mut block).unwrap(), 6);
        assert_eq!(reader.join().unwrap(), much);
        assert_eq!(read(&ours, &mut block).unwrap(), 0);
    }
}
