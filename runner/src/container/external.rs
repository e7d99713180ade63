//! A container's processes, made by another OCI runtime.
//!
//! A *supervisor*, forked by the monitor, stands for such a process: it writes the bundle, has the runtime make the process,
//! takes it for its own child when the runtime has ended, and ends as it does. So the monitor sees a child as any other.
//! The container's root is mounted in a namespace of the supervisor's and goes with it. A supervisor whose monitor is
//! killed has the runtime remove the container.
//!
//! ```text
//! ID/runtime/
//!   bundle/          config.json, rootfs
//!   state/           the runtime's own
//!   N.json, N.pid, N.socket, N.log   of one call; N is the supervisor's process id
//! ```

use super::wire::ExecRequest;
use crate::error::{During, Failure};
use crate::oci::generate::{self, Process};
use crate::protocol::{Frame, Leftovers, send};
use crate::sandbox::resolve::Root;
use crate::sandbox::rootfs::{attach, mount_root, open_host};
use crate::sandbox::{account, open_directory};
use crate::spec::{Account, Network, Spec};
use crate::users::User;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use rustix::process::{Signal, WaitOptions, set_child_subreaper, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a runtime's things lie, below the container's directory.
const DIRECTORY: &str = "runtime";

/// The root file system of the bundle of the container in `directory`.
pub(crate) fn rootfs_of_bundle(directory: &Path) -> PathBuf {
    directory.join(DIRECTORY).join("bundle/rootfs")
}

/// A runtime and the container that it is for. The monitor's working directory is the container's.
#[derive(Clone, Debug)]
pub(super) struct External {
    pub(super) program: PathBuf,
    pub(super) id: String,
    /// The container's directory.
    pub(super) directory: PathBuf,
}

/// What is to be made.
pub(super) enum Task<'a> {
    /// The container, with its first process.
    Container(&'a Spec),
    /// Another process beside the one with this id.
    Process(u32, &'a ExecRequest),
}

impl External {
    fn place(&self) -> PathBuf {
        self.directory.join(DIRECTORY)
    }

    /// A call of the runtime, which writes what goes wrong to `log`.
    fn call(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", crate::spec::DEFAULT_PATH).current_dir(self.place());
        command.arg("--root").arg(self.place().join("state"));
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Has the runtime forget the container, and ends what is left of it.
    pub(super) fn forget(&self) {
        let log = self.place().join("delete.log");
        if self.place().join("state").join(&self.id).exists() {
            // What it cannot remove goes with the container's directory.
            let _ = self.call(&log).args(["delete", "--force", &self.id]).status();
        }
        let _ = fs::remove_file(log);
    }

    /// Becomes the supervisor of a new process.
    pub(super) fn supervise(&self, session: OwnedFd, stdio: [OwnedFd; 3], task: &Task<'_>) -> ! {
        // What it has of the monitor would keep streams open, and the container locked.
        let own = [&session, &stdio[0], &stdio[1], &stdio[2]].map(AsFd::as_fd);
        if xbuild_sys::close_others(3, &own).is_err() {
            xbuild_sys::exit_now(125);
        }
        let supervisor = Supervisor { external: self, task, own: self.place().join(std::process::id().to_string()) };
        let work = std::panic::AssertUnwindSafe(|| supervisor.make(&session, stdio));
        let made = match std::panic::catch_unwind(work) {
            Ok(made) => made,
            Err(_) => Err(Failure::Refused("internal error: the supervisor panicked".to_owned())),
        };
        supervisor.tidy();
        match made {
            Ok(pid) => {
                let _ = send(session.as_fd(), &Frame::Ready(Leftovers::default()));
                drop(session);
                supervisor.wait(pid)
            }
            Err(failure) => {
                if matches!(task, Task::Container(_)) {
                    self.forget();
                }
                let code = if let Failure::Exec { code, .. } = &failure { *code } else { 125 };
                let _ = send(session.as_fd(), &Frame::Failed(failure, Leftovers::default()));
                xbuild_sys::exit_now(code)
            }
        }
    }
}

struct Supervisor<'a> {
    external: &'a External,
    task: &'a Task<'a>,
    /// Names of this call's files without their endings.
    own: PathBuf,
}

impl Supervisor<'_> {
    fn file(&self, ending: &str) -> PathBuf {
        self.own.with_extension(ending)
    }

    fn tidy(&self) {
        for ending in ["json", "pid", "socket", "log"] {
            let _ = fs::remove_file(self.file(ending));
        }
    }

    /// Has the process made and started; gives its id.
    fn make(&self, session: &OwnedFd, stdio: [OwnedFd; 3]) -> Result<u32, Failure> {
        // The monitor's end is one of the signals that are waited for.
        set_parent_process_death_signal(Some(Signal::TERM)).during(|| "watch over the monitor".to_owned())?;
        set_child_subreaper(rustix::process::Pid::from_raw(1)).during(|| "take in orphans".to_owned())?;
        let place = self.external.place();
        fs::create_dir_all(place.join("state")).during(|| format!("make `{}`", place.display()))?;
        let console = match self.task {
            Task::Container(spec) => {
                self.write_bundle(spec)?;
                spec.console
            }
            Task::Process(main, request) => {
                self.write_process(*main, request)?;
                request.console
            }
        };
        let pid = self.create(stdio, console.is_some())?;
        // From here on it can be told apart, and gets signals.
        send(session.as_fd(), &Frame::Runs(pid)).during(|| "report to the monitor".to_owned())?;
        if matches!(self.task, Task::Container(_)) {
            let mut call = self.external.call(&self.file("log"));
            call.args(["start", &self.external.id]);
            self.run(&mut call, "start")?;
        }
        Ok(pid)
    }

    /// Mounts the root and writes what the runtime is to make of it.
    fn write_bundle(&self, spec: &Spec) -> Result<(), Failure> {
        let rootfs = rootfs_of_bundle(&self.external.directory);
        fs::create_dir_all(&rootfs).during(|| format!("make `{}`", rootfs.display()))?;
        xbuild_sys::unshare(UnshareFlags::NEWNS.bits()).during(|| "make a mount namespace".to_owned())?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .during(|| "cut the mounts off from the host's".to_owned())?;
        let tree = mount_root(&spec.root)?;
        attach(tree.as_fd(), open_host(&rootfs)?.as_fd()).during(|| "mount the root file system".to_owned())?;
        let root = Root::new(tree)?;
        let user = user_of(&root, spec)?;
        root.directory(&spec.cwd)?;
        let mut spec = spec.clone();
        if let Network::Namespace(path) = &spec.network {
            let monitor = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
            spec.network = Network::Namespace(generate::seen_by_others(path, monitor));
        }
        let config = generate::config(&spec, &rootfs, &user)?;
        write(&rootfs.with_file_name("config.json"), &config)
    }

    fn write_process(&self, main: u32, request: &ExecRequest) -> Result<(), Failure> {
        let root = open_directory(&format!("/proc/{main}/root"))?;
        let user = account::resolve(root.as_fd(), &request.account)?;
        let process = generate::process(&Process {
            args: &request.args,
            env: &request.env,
            cwd: &request.cwd,
            user: &user,
            privileges: &request.privileges,
            rlimits: &request.rlimits,
            console: request.console,
        });
        write(&self.file("json"), &process)
    }

    /// Calls the runtime; gives the new process's id.
    fn create(&self, [stdin, stdout, stderr]: [OwnedFd; 3], terminal: bool) -> Result<u32, Failure> {
        let pid_file = self.file("pid");
        let mut call = self.external.call(&self.file("log"));
        let what = match self.task {
            Task::Container(_) => {
                call.arg("create").arg("--bundle").arg(self.external.place().join("bundle"));
                "create"
            }
            Task::Process(..) => {
                call.args(["exec", "--detach", "--process"]).arg(self.file("json"));
                "exec"
            }
        };
        call.arg("--pid-file").arg(&pid_file);
        let console = if terminal { Some(self.listen()?) } else { None };
        if let Some((_, name)) = &console {
            // Through this process's working directory, since the whole path may be longer than an address can be.
            call.arg("--console-socket").arg(format!("/proc/{}/cwd/{name}", std::process::id()));
        }
        let for_terminal = match console {
            Some((listener, _)) => Some((listener, stdin)),
            None => {
                call.stdin(stdin).stdout(stdout).stderr(stderr);
                None
            }
        };
        self.run(call.arg(&self.external.id), what)?;
        // Our copies of the streams, which would hold them open.
        drop(call);
        if let Some((listener, monitor)) = for_terminal {
            hand_terminal_on(&listener, &monitor).during(|| "hand the terminal over".to_owned())?;
        }
        let text = fs::read_to_string(&pid_file).during(|| format!("read `{}`", pid_file.display()))?;
        text.trim().parse().map_err(|_| Failure::Refused(format!("the OCI runtime wrote `{text}` for a process id")))
    }

    fn listen(&self) -> Result<(OwnedFd, String), Failure> {
        let path = self.file("socket");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let open = || -> io::Result<OwnedFd> {
            std::env::set_current_dir(self.external.place())?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &SocketAddrUnix::new(name.as_str())?)?;
            listen(&socket, 1)?;
            Ok(socket)
        };
        Ok((open().during(|| format!("listen at `{}`", path.display()))?, name))
    }

    /// Runs a call to its end; what the runtime has to say is the error.
    fn run(&self, call: &mut Command, what: &str) -> Result<(), Failure> {
        let name = self.external.program.display();
        let status = call.status().during(|| format!("execute the OCI runtime `{name}`"))?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(self.file("log")).unwrap_or_default();
        let said = last_error(&said).unwrap_or_else(|| status.to_string());
        let name = self.external.program.file_name().unwrap_or_default().to_string_lossy();
        let message = format!("OCI runtime {what} failed: {name}: {said}");
        Err(Failure::Exec { message, code: code_of(&said).unwrap_or(125) })
    }

    /// Waits for the end of the process, and ends like it.
    fn wait(&self, pid: u32) -> ! {
        loop {
            while let Ok(Some((ended, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                if ended.as_raw_nonzero().get() as u32 == pid {
                    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
                    xbuild_sys::exit_now(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255));
                }
            }
            // All are kept from this process: the monitor keeps them from itself.
            if let Ok(libc::SIGTERM) = xbuild_sys::wait_signal() {
                if matches!(self.task, Task::Container(_)) {
                    self.external.forget();
                }
                xbuild_sys::exit_now(137)
            }
        }
    }
}

fn user_of(root: &Root, spec: &Spec) -> Result<User, Failure> {
    match &spec.account {
        Some(account) => account::resolve(root.fd(), account),
        None => {
            let known = Account { user: spec.user.uid.to_string(), groups: Vec::new() };
            let home = account::resolve(root.fd(), &known).map_or_else(|_| "/".to_owned(), |user| user.home);
            Ok(User { identity: spec.user.clone(), home })
        }
    }
}

fn write(file: &Path, value: &serde_json::Value) -> Result<(), Failure> {
    fs::write(file, value.to_string()).during(|| format!("write `{}`", file.display()))
}

/// Takes the terminal from the runtime's connection and sends it to the monitor.
fn hand_terminal_on(listener: &OwnedFd, monitor: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let connection = accept_with(listener, SocketFlags::CLOEXEC)?;
    let controller = super::child::receive_terminal(&connection)?.ok_or(rustix::io::Errno::BADF)?;
    crate::sandbox::console::hand_over(monitor.as_fd(), controller.as_fd())
}

/// The last error in a runtime's log.
fn last_error(log: &str) -> Option<String> {
    let message = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        (value["level"] == "error").then(|| value["msg"].as_str().map(str::to_owned)).flatten()
    };
    log.lines().rev().find_map(message)
}

/// The exit code of docker for a program that could not be executed, by what runtimes say of it.
fn code_of(said: &str) -> Option<u8> {
    let about = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
    if !about(&["exec", "executable"]) {
        None
    } else if about(&["not found in $PATH", "no such file or directory", "No such file or directory"]) {
        Some(127)
    } else if about(&["permission denied", "Permission denied", "is a directory", "exec format error"]) {
        Some(126)
    } else {
        None
    }
}

/// The runtime of a container that was given one.
pub(super) fn of(container: &super::config::Container, directory: &Path) -> Option<External> {
    Some(&container.oci_runtime).filter(|program| !program.is_empty()).map(|program| External {
        program: PathBuf::from(program),
        id: container.id.clone(),
        directory: directory.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_counts() {
        let log = "{\"level\":\"error\",\"msg\":\"one\"}\nnoise\n{\"level\":\"error\",\"msg\":\"two\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("two"));
        assert_eq!(last_error("noise"), None);
    }

    #[test]
    fn programs_that_cannot_be_executed_have_docker_s_codes() {
        for (said, code) in [
            ("exec: \"x\": executable file not found in $PATH", Some(127)),
            ("executable file `x` not found in $PATH: No such file or directory", Some(127)),
            ("exec /x: no such file or directory", Some(127)),
            ("exec: \"/etc\": permission denied", Some(126)),
            ("mount /a: no such file or directory", None),
        ] {
            assert_eq!(code_of(said), code, "{said}");
        }
    }
}
