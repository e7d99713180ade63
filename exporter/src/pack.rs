//! Block-parallel compression with output that does not depend on the number of threads.
//!
//! The input is cut into blocks of fixed size; each becomes a gzip member or zstd frame of its own. A concatenation of members
//! or frames is one valid stream (RFC 1952 §2.2, RFC 8878 §3). Blocks are packed on rayon, written in order, and at most
//! [`IN_FLIGHT`] blocks per thread are held.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use xbuild_cache::Packing;

const GZIP_BLOCK: usize = 1 << 20;
const ZSTD_BLOCK: usize = 4 << 20;
const IN_FLIGHT: usize = 2;

/// Packs what is written to it and passes it on.
#[derive(Debug)]
pub struct PackWriter<W> {
    inner: W,
    packing: Packing,
    block: Vec<u8>,
    block_size: usize,
    queue: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    most: usize,
    any: bool,
}

impl<W: Write> PackWriter<W> {
    /// Packs into `inner`. Must not be used on a rayon thread, which could wait for itself.
    pub fn new(inner: W, packing: Packing) -> Self {
        let block_size = if matches!(packing, Packing::Zstd(_)) { ZSTD_BLOCK } else { GZIP_BLOCK };
        let most = rayon::current_num_threads() * IN_FLIGHT;
        Self { inner, packing, block: Vec::new(), block_size, queue: VecDeque::new(), most, any: false }
    }

    /// Packs the rest and returns the writer below.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() || (!self.any && self.packing != Packing::Plain) {
            self.submit()?;
        }
        while !self.queue.is_empty() {
            self.write_front()?;
        }
        Ok(self.inner)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.any = true;
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(self.block_size));
        let (packing, (send, receive)) = (self.packing, sync_channel(1));
        rayon::spawn(move || {
            // The receiver is gone only if writing failed, which is reported there.
            let _ = send.send(pack_block(&block, packing));
        });
        self.queue.push_back(receive);
        while self.queue.len() > self.most {
            self.write_front()?;
        }
        Ok(())
    }

    fn write_front(&mut self) -> io::Result<()> {
        let Some(front) = self.queue.pop_front() else {
            return Ok(());
        };
        let packed = front.recv().map_err(|_| io::Error::other("a compression thread died"))??;
        self.inner.write_all(&packed)
    }
}

impl<W: Write> Write for PackWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.packing == Packing::Plain {
            return self.inner.write(bytes);
        }
        let n = bytes.len().min(self.block_size - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        if self.block.len() == self.block_size {
            self.submit()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pack_block(block: &[u8], packing: Packing) -> io::Result<Vec<u8>> {
    match packing {
        Packing::Plain => Ok(block.to_vec()),
        Packing::Zstd(level) => zstd::bulk::compress(block, level),
        Packing::Gzip(level) => {
            let level = libdeflater::CompressionLvl::new(level).map_err(|_| io::Error::other("no such gzip level"))?;
            let mut compressor = libdeflater::Compressor::new(level);
            let mut out = vec![0; compressor.gzip_compress_bound(block.len())];
            let size = compressor.gzip_compress(block, &mut out).map_err(io::Error::other)?;
            out.truncate(size);
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn packed(data: &[u8], packing: Packing) -> Vec<u8> {
        let mut writer = PackWriter::new(Vec::new(), packing);
        data.chunks(70_001).for_each(|c| writer.write_all(c).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn packed_streams_unpack_to_the_input() {
        for size in [0, 1, GZIP_BLOCK, 3 * GZIP_BLOCK + 17] {
            let data: Vec<u8> = (0..size).map(|i| ((i * i) >> 7) as u8).collect();
            let mut out = Vec::new();
            flate2::read::MultiGzDecoder::new(&packed(&data, Packing::Gzip(6))[..]).read_to_end(&mut out).unwrap();
            assert!(out == data, "gzip of {size}");
            out.clear();
            zstd::Decoder::new(&packed(&data, Packing::Zstd(3))[..]).unwrap().read_to_end(&mut out).unwrap();
            assert!(out == data, "zstd of {size}");
            assert!(packed(&data, Packing::Plain) == data);
        }
    }

    #[test]
    fn output_does_not_depend_on_how_it_was_written() {
        let data: Vec<u8> = (0..5 * GZIP_BLOCK).map(|i| (i % 251) as u8).collect();
        let mut whole = PackWriter::new(Vec::new(), Packing::Gzip(6));
        whole.write_all(&data).unwrap();
        assert!(whole.finish().unwrap() == packed(&data, Packing::Gzip(6)));
    }
}
