//! Times tree operations on real directories, for comparison with `cp` and `tar` in the same session.
//!
//! `trees copy CONTEXT DIFF`, `trees from TREE DIFF`, `trees hash CONTEXT [INDEX]`, `trees layer DIFF FILE`, `trees unpack FILE DIFF`

use std::error::Error;
use std::path::Path;
use std::time::Instant;
use xbuild_cache::tree::*;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let start = Instant::now();
    let said = match words.as_slice() {
        ["copy", from, to] => copy(&View::context(Path::new(from), None)?, to, false)?,
        ["from", from, to] => copy(&View::layers(&[from], Marks::Trusted)?, to, true)?,
        ["hash", from] => hex(View::context(Path::new(from), None)?.digest("/", true, &NoDigests)?),
        ["hash", from, index] => {
            let index = StatIndex::open(Path::new(index))?;
            let opened = start.elapsed();
            let digest = View::context(Path::new(from), None)?.digest("/", true, &index)?;
            let (hits, hashed) = (index.hits(), start.elapsed());
            let saved = index.save()?;
            format!("{} opened {opened:?} hashed {hashed:?} hits {hits} saved {saved}", hex(digest))
        }
        ["layer", diff, file] => {
            let mut out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
            write_layer(&[diff], Marks::Trusted, TarOptions::default(), &mut out)?;
            std::io::Write::flush(&mut out)?;
            String::new()
        }
        ["unpack", file, diff] => {
            std::fs::create_dir(diff)?;
            let empty = View::layers::<&Path>(&[], Marks::Trusted)?;
            let file = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(file)?);
            format!(
                "{:?}",
                unpack_layer(file, Path::new(diff), &|| Ok(empty.clone()), Marks::Trusted, Limits::default())?
            )
        }
        _ => return Err("see the head of the file for usage".into()),
    };
    eprintln!("{:7.1} ms  {} {said}", start.elapsed().as_secs_f64() * 1e3, words.join(" "));
    Ok(())
}

fn hex(digest: TreeDigest) -> String {
    digest[..6].iter().map(|b| format!("{b:02x}")).collect()
}

fn copy(view: &View, to: &str, keep_owner: bool) -> Result<String, Box<dyn Error>> {
    std::fs::create_dir(to)?;
    let base = View::layers::<&Path>(&[], Marks::Trusted)?;
    let never = |_: &str, _: &str| false;
    let options = CopyOptions {
        destination: Path::new("/c/"),
        owner: None,
        keep_owner,
        mode: None,
        unpack: false,
        parents: false,
        excludes: None,
        wildcard: &never,
        glob: &never,
        mtime: None,
        clamp: None,
        limits: Limits::default(),
        changes: None,
        digests: None,
    };
    let writer = DiffWriter::new(Path::new(to), &base, Marks::Trusted)?;
    writer.copy(&[CopySource::Path { view, path: Path::new("/"), wildcard: false, required: true }], &options)?;
    writer.finish()?;
    Ok(String::new())
}
