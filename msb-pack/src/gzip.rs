//! gzip on several processors, as pigz does it: blocks are compressed independently of one another and joined to one deflate
//! stream (RFC 1951, section 3.2; RFC 1952). The size of a block is fixed, so the result does not depend on the number of
//! processors.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// How much is compressed at once, in bytes. No block refers to the one before it, which makes the result less than 2 % larger.
const BLOCK: usize = 512 << 10;
/// The most threads: each holds a block and its result.
const MAX_THREADS: usize = 16;
/// No flags, no time, and an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// An empty last block.
const END: [u8; 2] = [0x03, 0x00];

type Compressed = io::Result<(Vec<u8>, Crc)>;
type Job = (Vec<u8>, Sender<Compressed>);

/// Compresses what is written to it.
pub(crate) struct Gzip<W: Write> {
    out: W,
    block: Vec<u8>,
    crc: Crc,
    jobs: Option<SyncSender<Job>>,
    /// The results of blocks in their order.
    pending: VecDeque<Receiver<Compressed>>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: Write> Gzip<W> {
    /// Starts the threads.
    ///
    /// # Errors
    /// The error of writing or of starting a thread.
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        let count = processors();
        let (jobs, queue) = sync_channel::<Job>(count);
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for _ in 0..count {
            let queue = Arc::clone(&queue);
            threads.push(std::thread::Builder::new().spawn(move || work(&queue))?);
        }
        Ok(Self {
            out,
            block: Vec::with_capacity(BLOCK),
            crc: Crc::new(),
            jobs: Some(jobs),
            pending: VecDeque::new(),
            threads,
        })
    }

    fn send(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        while self.pending.len() > self.threads.len() {
            self.take()?;
        }
        let (sender, receiver) = channel();
        self.pending.push_back(receiver);
        let jobs = self.jobs.as_ref().expect("it is not finished");
        jobs.send((block, sender)).map_err(|_| io::Error::other("a thread that compresses has ended"))
    }

    /// Writes the next result.
    fn take(&mut self) -> io::Result<()> {
        let Some(result) = self.pending.pop_front() else { return Ok(()) };
        let (bytes, crc) = result.recv().map_err(|_| io::Error::other("a thread that compresses has ended"))??;
        self.crc.combine(&crc);
        self.out.write_all(&bytes)
    }

    /// Writes the end.
    ///
    /// # Errors
    /// The error of compressing or writing.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.send()?;
        }
        while !self.pending.is_empty() {
            self.take()?;
        }
        self.jobs = None;
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a thread that compresses has panicked"))?;
        }
        self.out.write_all(&END)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(BLOCK - self.block.len());
        self.block.extend(&bytes[..length]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many threads compress.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

fn work(queue: &Mutex<Receiver<Job>>) {
    let mut compress = Compress::new(Compression::new(6), false);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((block, result)) = job else { return };
        compress.reset();
        // Nobody waits for it if writing has failed.
        let _ = result.send(deflate(&mut compress, &block));
    }
}

fn deflate(compress: &mut Compress, block: &[u8]) -> Compressed {
    let mut crc = Crc::new();
    crc.update(block);
    let mut out = Vec::with_capacity(block.len() / 2 + 1024);
    loop {
        let taken = usize::try_from(compress.total_in()).unwrap_or(usize::MAX);
        let status = compress.compress_vec(&block[taken..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
        // Room is left: all of it, and the end of the block, has been written.
        if compress.total_in() == block.len() as u64 && out.len() < out.capacity() {
            return Ok((out, crc));
        }
        if status == Status::StreamEnd {
            return Err(io::Error::other("deflate ended early"));
        }
        out.reserve(64 << 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_compressed_comes_back() {
        let mut noise = 1u32;
        let mut random = move || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        };
        for length in [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7] {
            for content in [vec![b'a'; length], (0..length).map(|_| random()).collect()] {
                let mut gzip = Gzip::new(Vec::new()).unwrap();
                gzip.write_all(&content).unwrap();
                let packed = gzip.finish().unwrap();
                let mut back = Vec::new();
                flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut back).unwrap();
                assert!(back == content, "{length}");
            }
        }
    }
}
