//! `xbuild run`.

use crate::lab;
use xbuild_testkit::Lab;

fn image(lab: &Lab, name: &str, dockerfile: &str) {
    lab.write(&format!("{name}/Dockerfile"), format!("FROM busybox\n{dockerfile}"));
    lab.xbuild(&["-t", name, name]).ok();
}

#[test]
fn the_exit_code_is_that_of_the_process() {
    let Some(lab) = lab(&[]) else { return };
    let run = |command: &[&str]| lab.xbuild(&["run", "--rm", "busybox"]).args(command);
    run(&["true"]).ok();
    run(&["sh", "-c", "exit 42"]).exits(42);
    run(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).exits(128 + 9);
    run(&["nosuch"]).exits(127).says("nosuch");
    run(&["/no/such"]).exits(127);
    run(&["/etc"]).exits(126);
    run(&["/etc/passwd"]).exits(126);
    lab.xbuild(&["run", "127.0.0.1:1/nosuch"]).exits(125).says("nosuch");
    lab.xbuild(&["run", "-u", "nosuch", "busybox", "true"]).exits(125).says("nosuch");
    lab.xbuild(&["run", "-it", "busybox", "true"]).exits(1).says("TTY");
    lab.xbuild(&["run", "--no-such-flag", "busybox", "true"]).exits(125).says("no-such-flag");
}

#[test]
fn flags_take_the_place_of_the_images_settings() {
    let Some(lab) = lab(&[]) else { return };
    let users = "RUN echo 'app:x:7:8::/home/app:/bin/sh' >> /etc/passwd; echo 'staff:x:8:' >> /etc/group\n";
    image(
        &lab,
        "app",
        &format!("{users}ENV A=image B=image\nWORKDIR /work\nUSER app\nCMD echo $A $B $PWD $(id -u):$(id -g)\n"),
    );
    let run = |flags: &[&str]| lab.xbuild(&["run", "--rm"]).args(flags).arg("app");
    assert_eq!(run(&[]).ok().out(), "image image /work 7:8");
    assert_eq!(run(&["-e", "A=flag", "-w", "/tmp", "-u", "0:0"]).ok().out(), "flag image /tmp 0:0");
    assert_eq!(run(&["-u", "3"]).ok().out(), "image image /work 3:0");
    assert_eq!(run(&["-u", "3:staff"]).ok().out(), "image image /work 3:8");
    assert_eq!(run(&["-e", "A", "-e", "UNSET"]).env("A", "outside").ok().out(), "outside image /work 7:8");
    assert_eq!(run(&["-w", "/new/dir"]).ok().out(), "image image /new/dir 7:8");
    assert_eq!(run(&["-h", "name"]).arg("hostname").ok().out(), "name");
    let home = run(&[]).args(&["sh", "-c", "echo $HOME"]).ok().out();
    assert_eq!(home, "/home/app");
    let variables = run(&[]).arg("env").env("SECRET_OF_HOST", "1").ok().out();
    assert!(!variables.contains("SECRET_OF_HOST"), "{variables}");
}

#[test]
fn entrypoint_and_command_are_joined() {
    let Some(lab) = lab(&[]) else { return };
    image(&lab, "both", "ENTRYPOINT [\"echo\", \"entry\"]\nCMD [\"cmd\"]\n");
    image(&lab, "shell", "ENTRYPOINT echo shell\nCMD [\"cmd\"]\n");
    image(&lab, "none", "CMD []\n");
    let run = |arguments: &[&str]| lab.xbuild(&["run", "--rm"]).args(arguments).ok().out();
    assert_eq!(run(&["both"]), "entry cmd");
    assert_eq!(run(&["both", "a", "-b", "--rm"]), "entry a -b --rm");
    assert_eq!(run(&["--entrypoint", "printf", "both", "%s."]), "%s.".replace("%s", ""));
    assert_eq!(run(&["--entrypoint", "echo", "both"]), "", "the image's command goes with its entrypoint");
    assert_eq!(run(&["--entrypoint", "", "both", "echo", "alone"]), "alone");
    assert_eq!(run(&["shell", "more"]), "shell");
    lab.xbuild(&["run", "none"]).exits(125);
}

#[test]
fn standard_input_is_there_with_i_only() {
    let Some(lab) = lab(&[]) else { return };
    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let done = lab.xbuild(&["run", "-i", "busybox", "cat"]).input(bytes.clone()).ok();
    assert!(done.stdout == bytes, "{} of {} bytes", done.stdout.len(), bytes.len());
    let done = lab.xbuild(&["run", "busybox", "cat"]).input("text").ok();
    assert_eq!(done.out(), "");
    let done = lab.xbuild(&["run", "busybox", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((done.out().as_str(), done.stderr.trim()), ("out", "err"));
}

#[test]
fn what_a_container_writes_is_gone() {
    let Some(lab) = lab(&[]) else { return };
    let run = |command: &str| lab.xbuild(&["run", "busybox", "sh", "-c", command]);
    run("echo x > /x && rm /etc/passwd && echo changed > /etc/group").ok();
    assert_eq!(run("test ! -e /x && test -s /etc/passwd && cat /etc/group").ok().out(), "root:x:0:");
    assert_eq!(lab.xbuild(&["store", "check"]).ok().out(), "0 problems");
    let token = lab.token();
    run(&format!("sleep {token} & echo started")).ok();
    lab.assert_no_traces(&token);
}

#[test]
fn a_container_has_its_own_processes_and_no_power_over_the_host() {
    let Some(lab) = lab(&[]) else { return };
    let run = |command: &str| lab.xbuild(&["run", "busybox", "sh", "-c", command]).run();
    assert_eq!(run("echo $$").out(), "1");
    assert_ne!(run("mount -t tmpfs none /tmp").code, 0);
    assert_ne!(run("echo 1 > /proc/sys/kernel/sysrq").code, 0);
    assert_ne!(run("mknod /dev/sda b 8 0 && head -c 1 /dev/sda").code, 0);
    let done = lab.xbuild(&["run", "--network", "none", "busybox", "sh", "-c", "cat /proc/net/dev | tail -n +3"]).ok();
    assert!(done.out().lines().all(|line| line.trim().starts_with("lo:")), "{done}");
}
