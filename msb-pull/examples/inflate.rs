//! Inflates a gzip file with zlib-rs, and drops what comes out: the time that no pull of this layer can be below.
use std::io;

fn main() -> io::Result<()> {
    let path = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: inflate FILE.gz"))?;
    let mut inflated =
        flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(1 << 20, std::fs::File::open(path)?));
    io::copy(&mut inflated, &mut io::sink())?;
    Ok(())
}
