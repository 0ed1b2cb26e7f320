//! Reading and writing the caller's files as if they blocked. Whether they do belongs to the open file, not to this process: who
//! shares it, as rsync shares its pipes, may have it otherwise.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Reads what is there, and waits where nothing is; 0 at the end.
///
/// # Errors
/// What `read(2)` says.
pub fn read(from: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&from, &mut *into) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(&from, PollFlags::IN)?,
            other => return Ok(other?),
        }
    }
}

/// Writes all of it, and waits where there is no room.
///
/// # Errors
/// What `write(2)` says.
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
    fn a_file_that_does_not_block_is_waited_for() {
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
