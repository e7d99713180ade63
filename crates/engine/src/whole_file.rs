//! Files of the user that appear whole or not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile};

/// A file that takes the place of what has its name when it is finished; dropped before, it leaves nothing.
///
/// Links are followed. What is there and no regular file, as a device, a pipe or `/dev/stdout`, is written to as it is.
#[derive(Debug)]
pub struct WholeFile(Place);

#[derive(Debug)]
enum Place {
    Beside { part: NamedTempFile, path: PathBuf },
    Itself(File),
}

impl WholeFile {
    /// Begins a file with these permission bits, of which the process's mask takes some away.
    ///
    /// # Errors
    /// The directory is not there, or nothing may be made in it.
    pub fn create(path: &Path, mode: u32) -> io::Result<WholeFile> {
        let path = match std::fs::metadata(path) {
            Ok(about) if !about.is_file() => {
                return Ok(WholeFile(Place::Itself(OpenOptions::new().write(true).open(path)?)));
            }
            Ok(_) => std::fs::canonicalize(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = Builder::new();
        // A name may be as long as it can be already.
        let shown: String = name.chars().take(50).collect();
        let part = builder
            .prefix(&format!(".{shown}.part-"))
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        Ok(WholeFile(Place::Beside { part, path }))
    }

    /// Gives it its name.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            Place::Beside { part, path } => part.persist(path).map(drop).map_err(|error| error.error),
            Place::Itself(_) => Ok(()),
        }
    }

    fn file(&mut self) -> &mut dyn Write {
        match &mut self.0 {
            Place::Beside { part, .. } => part.as_file_mut(),
            Place::Itself(file) => file,
        }
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn written(path: &Path) -> io::Result<()> {
        let mut file = WholeFile::create(path, 0o600)?;
        file.write_all(b"new")?;
        file.finish()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut file = WholeFile::create(&path, 0o666).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        written(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(written(&dir.path().join("none/f")).is_err());
        assert!(written(dir.path()).is_err(), "a directory");
    }

    #[test]
    fn links_are_followed_and_pipes_stay_pipes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, pipe) = (dir.path().join("f"), dir.path().join("link"), dir.path().join("pipe"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("f", &link).unwrap();
        written(&link).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        written(&pipe).unwrap();
        assert_eq!(reader.join().unwrap(), b"new");
        assert!(!fs::symlink_metadata(&pipe).unwrap().is_file());
    }
}
