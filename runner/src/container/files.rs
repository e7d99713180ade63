//! The directory of all containers, and of one.

use super::config::Container;
use super::error::{At, ContainerError};
use super::state::{State, Status};
use super::{clock, events};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, ContainerError>;

/// Name of the file that says what has become of a container.
const STATE: &str = "state.json";

/// All containers of a store.
#[derive(Clone, Debug)]
pub struct Containers {
    root: PathBuf,
}

/// One container on disk, as it was when it was looked at.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is.
    pub container: Container,
    /// What has become of it.
    pub state: State,
    /// Its directory.
    pub directory: PathBuf,
}

/// The right to change a container that does not run; monitors hold it while one runs.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// The open file, to hand the right on.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Containers {
    /// The containers of the store at `root`.
    #[must_use]
    pub fn of(root: &Path) -> Containers {
        Containers { root: root.join("containers") }
    }

    /// The store that they are in.
    #[must_use]
    pub fn store(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    /// The directory of the container `id`.
    #[must_use]
    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// The directory with mount points that images may lack, which lies under all layers.
    pub fn skeleton(&self) -> Result<PathBuf> {
        let path = self.root.join(".skeleton");
        // By which programs see that they are in a container.
        let mark = path.join(".dockerenv");
        if fs::symlink_metadata(&mark).is_err() {
            crate::skeleton::create(&path).at("make", &path)?;
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o755).open(&mark).at("make", &mark)?;
        }
        Ok(path)
    }

    /// Writes a new container; its directory appears whole.
    pub fn create(&self, container: &Container, prepare: &dyn Fn(&Path) -> Result<()>) -> Result<PathBuf> {
        self.make_root()?;
        let staged = self.root.join(format!(".new-{}-{}", std::process::id(), container.short_id()));
        fs::DirBuilder::new().mode(0o700).create(&staged).at("make", &staged)?;
        let done = (|| {
            write_json(&staged.join("config.json"), container)?;
            File::create(staged.join("lock")).at("make", &staged)?;
            prepare(&staged)?;
            let _names = self.names()?;
            self.claim(&container.name, &container.id)?;
            let directory = self.directory(&container.id);
            fs::rename(&staged, &directory).at("make", &directory)?;
            Ok(directory)
        })();
        if done.is_err() {
            // What went wrong matters more than a directory that stays.
            let _ = fs::remove_dir_all(&staged);
        }
        done
    }

    fn make_root(&self) -> Result<()> {
        let names = self.root.join(".names");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&names).at("make", &names)
    }

    /// The right to give and take names.
    fn names(&self) -> Result<File> {
        let path = self.root.join(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
        Ok(file)
    }

    fn claim(&self, name: &str, id: &str) -> Result<()> {
        let path = self.root.join(".names").join(name);
        if let Ok(owner) = fs::read_to_string(&path)
            && self.directory(&owner).join("config.json").exists()
        {
            return Err(ContainerError::NameTaken { name: name.to_owned(), id: owner });
        }
        fs::write(&path, id).at("write", &path)
    }

    /// Whether a container has this name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        fs::read_to_string(self.root.join(".names").join(name)).is_ok_and(|id| self.directory(&id).exists())
    }

    /// Gives a container another name.
    pub fn rename(&self, id: &str, name: &str) -> Result<()> {
        let _names = self.names()?;
        let mut container = self.read(id)?.container;
        self.claim(name, id)?;
        let old = std::mem::replace(&mut container.name, name.to_owned());
        write_json(&self.directory(id).join("config.json"), &container)?;
        let path = self.root.join(".names").join(old);
        fs::remove_file(&path).at("remove", &path)
    }

    /// Changes a container's configuration.
    pub fn update(&self, id: &str, change: &mut dyn FnMut(&mut Container) -> Result<()>) -> Result<Container> {
        let _names = self.names()?;
        let mut container = self.read(id)?.container;
        change(&mut container)?;
        write_json(&self.directory(id).join("config.json"), &container)?;
        Ok(container)
    }

    /// Takes a container's name and directory away. The bytes are freed by the caller, from the path that is returned.
    pub fn remove(&self, container: &Container) -> Result<PathBuf> {
        let _names = self.names()?;
        let directory = self.directory(&container.id);
        let name =
            read_json::<Container>(&directory.join("config.json")).map_or_else(|_| container.name.clone(), |c| c.name);
        let path = self.root.join(".names").join(name);
        if fs::read_to_string(&path).is_ok_and(|owner| owner == container.id) {
            fs::remove_file(&path).at("remove", &path)?;
        }
        let (_, nanos) = clock::now();
        let gone = self.root.join(format!(".gone-{}-{nanos}", std::process::id()));
        fs::rename(&directory, &gone).at("remove", &directory)?;
        Ok(gone)
    }

    /// Removes what killed processes were about to make or to remove.
    pub(super) fn sweep(&self) {
        sweep(&self.root);
    }

    /// All containers, the newest first.
    pub fn list(&self) -> Result<Vec<Found>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("read", &self.root)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.at("read", &self.root)?.file_name().to_string_lossy().into_owned();
            if is_id(&name) {
                match self.read(&name) {
                    Ok(one) => found.push(one),
                    Err(ContainerError::Missing(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        found.sort_by(|a, b| b.container.created.cmp(&a.container.created).then(b.container.id.cmp(&a.container.id)));
        Ok(found)
    }

    /// Finds a container by id, name, or the first digits of its id.
    pub fn find(&self, wanted: &str) -> Result<Found> {
        let missing = || ContainerError::Missing(wanted.to_owned());
        if is_id(wanted) && self.directory(wanted).exists() {
            return self.read(wanted);
        }
        let name = wanted.strip_prefix('/').unwrap_or(wanted);
        if is_name(name)
            && let Ok(id) = fs::read_to_string(self.root.join(".names").join(name))
            && self.directory(&id).exists()
        {
            return self.read(&id);
        }
        if wanted.is_empty() || !wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let entries = fs::read_dir(&self.root).map_err(|_| missing())?;
        let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut matching = names.by_ref().filter(|name| is_id(name) && name.starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(id), None) => self.read(&id),
            (Some(_), Some(_)) => Err(ContainerError::Ambiguous(wanted.to_owned())),
            (None, _) => Err(missing()),
        }
    }

    /// Reads one container. One whose monitor was killed is put into the state that it is really in.
    pub fn read(&self, id: &str) -> Result<Found> {
        let directory = self.directory(id);
        let gone = |error: ContainerError| match error {
            ContainerError::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ContainerError::Missing(id.to_owned())
            }
            other => other,
        };
        let container: Container = read_json(&directory.join("config.json")).map_err(gone)?;
        let mut state = read_state(&directory).map_err(gone)?;
        if state.status.is_alive()
            && let Some(_lock) = self.try_lock(id)?
        {
            // Nobody looks after it; but its monitor may have ended in order since the state was read.
            state = read_state(&directory).map_err(gone)?;
            if state.status.is_alive() {
                bury(&directory, &container, &mut state)?;
            }
        }
        Ok(Found { container, state, directory })
    }

    /// The right to change a container, if nobody has it.
    pub fn try_lock(&self, id: &str) -> Result<Option<Lock>> {
        let path = self.directory(id).join("lock");
        let file = match OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ContainerError::Missing(id.to_owned()));
            }
            file => file.at("open", &path)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).at("lock", &path),
        }
    }

    /// Where events are written.
    #[must_use]
    pub fn events(&self) -> events::Journal {
        events::Journal::of(&self.root)
    }
}

/// Removes directories `.new-PID-…` and `.gone-PID-…` of processes that are no more.
pub(super) fn sweep(root: &Path) {
    let left = |name: &str| {
        let rest = name.strip_prefix(".new-").or_else(|| name.strip_prefix(".gone-"))?;
        let process: u32 = rest.split('-').next()?.parse().ok()?;
        (!Path::new("/proc").join(process.to_string()).exists()).then_some(())
    };
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(left).is_some() {
            // Tried again the next time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Says of a container whose monitor was killed what has become of it: its processes ended with the monitor.
fn bury(directory: &Path, container: &Container, state: &mut State) -> Result<()> {
    if let Some(external) = super::external::of(container, directory) {
        external.forget();
    }
    crate::cgroup::remove(&super::group_of(container));
    if state.status != Status::Restarting {
        state.exit_code = 137;
    }
    state.status = Status::Exited;
    state.pid = 0;
    state.error = "the container's monitor was killed, and its processes with it".to_owned();
    state.finished_at = clock::stamp();
    write_state(directory, state)
}

/// What has become of the container in a directory: nothing yet if nobody has written it down.
pub(super) fn read_state(directory: &Path) -> Result<State> {
    let path = directory.join(STATE);
    match fs::read(&path) {
        // A file without bytes is what a machine that lost its power leaves of one that was not on its disk yet.
        Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => {
            let error = "the machine stopped before its end was written down".to_owned();
            Ok(State { status: Status::Exited, exit_code: 255, error, ..State::default() })
        }
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| ContainerError::Damaged { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.exists() => Ok(State::default()),
        Err(error) => Err(error).at("read", &path),
    }
}

/// Writes down what has become of the container in a directory, which appears whole.
///
/// The old file and the new one change places and the old one is removed then: where a file is renamed over another one, file
/// systems write its bytes to the disk at once, and whoever removes it next waits for that.
pub(super) fn write_state(directory: &Path, state: &State) -> Result<()> {
    let path = directory.join(STATE);
    let part = write_part(&path, state)?;
    match rustix::fs::renameat_with(CWD, &part, CWD, &path, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_file(&part).at("remove", &part),
        // There is no old one, or the file system cannot.
        Err(_) => fs::rename(&part, &path).at("write", &path),
    }
}

/// Whether the text has the form of an id.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the text can be a name of containers, networks and volumes.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() > 1 && text.len() <= 255 && text.as_bytes()[0].is_ascii_alphanumeric() && text.bytes().all(plain)
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|source| ContainerError::Damaged { path: path.to_owned(), source })
}

/// Writes a JSON file that appears whole.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let part = write_part(path, value)?;
    fs::rename(&part, path).at("write", path)
}

/// Writes a JSON file beside the one that it is going to be.
fn write_part<T: Serialize>(path: &Path, value: &T) -> Result<PathBuf> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| ContainerError::Damaged { path: path.to_owned(), source })?;
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).at("write", &part)?;
    file.write_all(&bytes).at("write", &part)?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(digit: char, name: &str) -> Container {
        Container {
            id: digit.to_string().repeat(64),
            name: name.to_owned(),
            created: format!("2026-01-0{digit}"),
            ..Container::default()
        }
    }

    fn nothing(_: &Path) -> Result<()> {
        Ok(())
    }

    #[test]
    fn a_state_is_replaced_whole_and_its_absence_means_created() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::of(dir.path());
        let directory = containers.create(&container('1', "one"), &nothing).unwrap();
        let status = || containers.read(&"1".repeat(64)).unwrap().state.status;
        assert_eq!(status(), Status::Created);
        for code in 0..3 {
            let state = State { status: Status::Exited, exit_code: code, ..State::default() };
            write_state(&directory, &state).unwrap();
            assert_eq!(read_state(&directory).unwrap(), state);
        }
        let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "lock", "state.json"]);
        // What a power cut leaves of a file whose bytes were not on the disk.
        fs::write(directory.join("state.json"), [0; 100]).unwrap();
        assert_eq!((status(), read_state(&directory).unwrap().exit_code), (Status::Exited, 255));
        fs::write(directory.join("state.json"), "{").unwrap();
        assert!(matches!(read_state(&directory), Err(ContainerError::Damaged { .. })));
        fs::remove_dir_all(&directory).unwrap();
        assert!(read_state(&directory).is_err());
    }

    #[test]
    fn names_belong_to_one_container_each() {
        let root = tempfile::tempdir().unwrap();
        let all = Containers::of(root.path());
        all.create(&container('1', "web"), &nothing).unwrap();
        let taken = all.create(&container('2', "web"), &nothing).unwrap_err();
        assert!(matches!(taken, ContainerError::NameTaken { .. }), "{taken}");
        all.create(&container('2', "db"), &nothing).unwrap();
        assert!(all.rename(&"2".repeat(64), "web").is_err());
        all.rename(&"1".repeat(64), "front").unwrap();
        all.rename(&"2".repeat(64), "web").unwrap();
        for (wanted, digit) in [("front", "1"), ("/web", "2"), ("11", "1"), (&*"2".repeat(64), "2")] {
            assert_eq!(all.find(wanted).unwrap().container.id, digit.repeat(64), "{wanted}");
        }
        assert!(matches!(all.find("db"), Err(ContainerError::Missing(_))));
        assert_eq!(all.list().unwrap().iter().map(|f| f.container.name.as_str()).collect::<Vec<_>>(), ["web", "front"]);
    }

    #[test]
    fn a_removed_container_frees_its_name() {
        let root = tempfile::tempdir().unwrap();
        let all = Containers::of(root.path());
        all.create(&container('1', "web"), &nothing).unwrap();
        let gone = all.remove(&container('1', "web")).unwrap();
        assert!(gone.exists() && all.list().unwrap().is_empty());
        all.create(&container('2', "web"), &nothing).unwrap();
    }

    #[test]
    fn who_has_no_monitor_does_not_run() {
        let root = tempfile::tempdir().unwrap();
        let all = Containers::of(root.path());
        let one = container('1', "web");
        let directory = all.create(&one, &nothing).unwrap();
        let running = State { status: Status::Running, pid: 7, ..State::default() };
        write_state(&directory, &running).unwrap();
        let lock = all.try_lock(&one.id).unwrap().unwrap();
        assert_eq!(all.read(&one.id).unwrap().state, running);
        assert!(all.try_lock(&one.id).unwrap().is_none());
        drop(lock);
        let state = all.read(&one.id).unwrap().state;
        assert_eq!((state.status, state.pid, state.exit_code), (Status::Exited, 0, 137));
    }

    #[test]
    fn names_are_names() {
        for good in ["web", "a1", "x_y.z-9"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a", ".", "..", "../x", "a/b", "-rf", "x\ny", "_a", &"a".repeat(300)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
