//! Which ids a user namespace has.

use rustix::process::{Uid, getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};
use std::fs;
use std::io::{self, PipeReader, Read};
use std::process::{Command, Stdio};

const WHOLE: u32 = u32::MAX;

/// Exit codes of the process that gives ids.
const NO_PROGRAM: u8 = 3;
const NOT_ALLOWED: u8 = 4;

/// Ids of a namespace and what they are outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// How ids are to be mapped.
#[derive(Debug)]
pub(super) enum Plan {
    /// The user's own as 0.
    One {
        why: String,
    },
    Many(Maps),
}

#[derive(Debug)]
pub(super) struct Maps {
    users: Vec<Range>,
    groups: Vec<Range>,
    /// By this process's own right, instead of by `newuidmap` and `newgidmap`.
    directly: bool,
}

impl Plan {
    /// The most that the calling process can have.
    pub(super) fn of_this_user(login: Option<&str>) -> Plan {
        let (uid, gid) = (geteuid(), getegid());
        if uid.is_root() && may_give_ids() {
            let own = |kind| read_map(kind).unwrap_or_default().iter().map(Range::unchanged).collect();
            return Plan::Many(Maps { users: own("uid"), groups: own("gid"), directly: true });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = name_of(&passwd, uid).or(login);
        let ranges = |file: &str| subordinate(&fs::read_to_string(file).unwrap_or_default(), uid, name);
        let (users, groups) = (ranges("/etc/subuid"), ranges("/etc/subgid"));
        if users.is_empty() || groups.is_empty() {
            let name = name.map_or_else(|| uid.as_raw().to_string(), str::to_owned);
            return Plan::One { why: without_ranges(&name) };
        }
        Plan::Many(Maps { users: joined(uid.as_raw(), &users), groups: joined(gid.as_raw(), &groups), directly: false })
    }
}

impl Range {
    /// The same ids in a namespace below.
    fn unchanged(&self) -> Range {
        Range { inside: self.inside, outside: self.inside, count: self.count }
    }
}

fn without_ranges(name: &str) -> String {
    format!("`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}` gives the full range")
}

/// Root of a container that may give its processes any ids it has.
fn may_give_ids() -> bool {
    let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

fn name_of(passwd: &str, uid: Uid) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid.as_raw())).then_some(name)
    })
}

/// The user's ranges of a file like `/etc/subuid`: first id and count.
fn subordinate(text: &str, uid: Uid, name: Option<&str>) -> Vec<(u32, u32)> {
    let number = uid.as_raw().to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range: (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (owner == number || Some(owner) == name).then_some(range)
    };
    text.lines().filter_map(range).filter(|(first, count)| *count > 0 && first.checked_add(*count).is_some()).collect()
}

/// The user as 0, the ranges one after the other from 1.
fn joined(own: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut next = 1_u32;
    for &(outside, count) in ranges {
        let count = count.min(WHOLE - next);
        map.push(Range { inside: next, outside, count });
        next += count;
    }
    map.retain(|range| range.count > 0);
    map
}

/// Waits until the process `pid` has its namespace, and gives it ids; an exit code.
pub(super) fn give_when_told(mut told: PipeReader, pid: u32, maps: &Maps) -> u8 {
    if told.read_exact(&mut [0]).is_err() {
        return 0;
    }
    if maps.directly {
        let written = [("uid_map", &maps.users), ("gid_map", &maps.groups)]
            .iter()
            .try_for_each(|(file, map)| fs::write(format!("/proc/{pid}/{file}"), text(map)));
        return if written.is_ok() { 0 } else { NOT_ALLOWED };
    }
    let start = |program: &str, map: &[Range]| {
        let numbers = map.iter().flat_map(|range| [range.inside, range.outside, range.count]);
        let mut command = Command::new(program);
        command.arg(pid.to_string()).args(numbers.map(|number| number.to_string()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    };
    let started = [start("newuidmap", &maps.users), start("newgidmap", &maps.groups)];
    let ended = started.map(|child| child.and_then(|mut child| child.wait()));
    match ended {
        [Ok(users), Ok(groups)] if users.success() && groups.success() => 0,
        [Ok(_), Ok(_)] => NOT_ALLOWED,
        _ => NO_PROGRAM,
    }
}

/// What the end of [`give_when_told`] means.
pub(super) fn refusal(code: Option<i32>) -> String {
    match code {
        Some(code) if code == i32::from(NO_PROGRAM) => {
            "`newuidmap` and `newgidmap` are not there; the package `uidmap` gives the full range".to_owned()
        }
        _ => {
            "`newuidmap` and `newgidmap` refuse the ranges of /etc/subuid and /etc/subgid; they have to be set-user-ID \
              root, and the ranges this user's"
                .to_owned()
        }
    }
}

/// Maps the user and group that this process has outside, without asking anybody. What is mapped already stays.
pub(super) fn take_one((uid, gid): (u32, u32)) -> io::Result<()> {
    let write = |file: &str, value: &str| {
        fs::write(format!("/proc/self/{file}"), value).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write {file} of a new user namespace: {error}"))
        })
    };
    if read_map("gid")?.is_empty() {
        // Else no group could be mapped: groups may also take rights away.
        write("setgroups", "deny")?;
        write("gid_map", &format!("0 {gid} 1"))?;
    }
    if read_map("uid")?.is_empty() {
        write("uid_map", &format!("0 {uid} 1"))?;
    }
    Ok(())
}

fn text(map: &[Range]) -> String {
    map.iter().map(|Range { inside, outside, count }| format!("{inside} {outside} {count}\n")).collect()
}

fn read_map(kind: &str) -> io::Result<Vec<Range>> {
    let text = fs::read_to_string(format!("/proc/self/{kind}_map"))?;
    let range = |line: &str| {
        let mut fields = line.split_ascii_whitespace().map(str::parse);
        let mut next = || fields.next()?.ok();
        Some(Range { inside: next()?, outside: next()?, count: next()? })
    };
    Ok(text.lines().filter_map(range).collect())
}

/// What root of this process's namespace is outside; none in the machine's own.
pub(super) fn outside() -> io::Result<Option<(u32, u32)>> {
    if is_whole()? {
        return Ok(None);
    }
    let of =
        |kind| Ok::<_, io::Error>(read_map(kind)?.iter().find(|range| range.inside == 0).map(|range| range.outside));
    Ok(of("uid")?.zip(of("gid")?))
}

/// Whether this process's namespace has all ids there are.
pub(super) fn is_whole() -> io::Result<bool> {
    Ok(read_map("uid")? == [Range { inside: 0, outside: 0, count: WHOLE }])
}

/// How many users, or groups if these are fewer, the calling process's namespace has.
///
/// # Errors
/// `/proc` cannot be read.
pub fn count() -> io::Result<u32> {
    let of =
        |kind| Ok::<_, io::Error>(read_map(kind)?.iter().fold(0, |sum: u32, range| sum.saturating_add(range.count)));
    Ok(of("uid")?.min(of("gid")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "other:1:2\nme:100000:65536\n4711:200000:10\nme:300000:0\nme:4294967295:2\nme:x:5\n\n  me:7:8  \n";
        let found = subordinate(text, Uid::from_raw(4711), Some("me"));
        assert_eq!(found, [(100_000, 65_536), (200_000, 10), (7, 8)]);
        assert_eq!(subordinate(text, Uid::from_raw(4711), None), [(200_000, 10)]);
        assert_eq!(subordinate(text, Uid::from_raw(1), None), []);
    }

    #[test]
    fn the_user_is_root_and_ranges_follow() {
        let range = |inside, outside, count| Range { inside, outside, count };
        assert_eq!(
            joined(4711, &[(100_000, 10), (500, 5)]),
            [range(0, 4711, 1), range(1, 100_000, 10), range(11, 500, 5)]
        );
        let most = joined(1, &[(0, WHOLE), (7, 7)]);
        assert_eq!(most, [range(0, 1, 1), range(1, 0, WHOLE - 1)]);
        assert_eq!(text(&most), "0 1 1\n1 0 4294967294\n");
    }

    #[test]
    fn names_come_from_the_list_of_users() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nme:x:4711:4711::/home/me:/bin/sh\nbroken\n";
        assert_eq!(name_of(passwd, Uid::from_raw(4711)), Some("me"));
        assert_eq!(name_of(passwd, Uid::from_raw(5)), None);
    }
}
