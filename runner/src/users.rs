//! `USER` texts to numbers, by the image's own passwd and group files, as docker does it.

use crate::spec::Identity;

/// The longest passwd or group file that is read; callers pass no more.
pub const FILE_LIMIT: usize = 10 << 20;

/// A resolved user with what else its passwd entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Numbers for the process.
    pub identity: Identity,
    /// Home directory; `/` when the user has no entry.
    pub home: String,
}

/// Why a user could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such name, and it is not a number.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// No such group, and it is not a number.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number that no user or group can have.
    #[error("uids and gids must be in range 0-2147483647: {0}")]
    OutOfRange(String),
    /// A file that is too large to be one.
    #[error("the image's {0} file is larger than 10 MiB")]
    TooLarge(&'static str),
}

struct PasswdEntry<'text> {
    name: &'text str,
    uid: u32,
    gid: u32,
    home: &'text str,
}

struct GroupEntry<'text> {
    name: &'text str,
    gid: u32,
    members: &'text str,
}

/// Resolves `user[:group]`; empty is root. `passwd` and `group` are the contents of the image's files, empty if absent.
///
/// Names win over numbers. Supplementary groups are those that list the user's name, unless a group is given. Lines
/// that do not parse are skipped.
pub fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let passwd = text_of(passwd, "passwd")?;
    let group = text_of(group, "group")?;
    let (user, given_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user)?;
    let entry = find_user(&passwd, user, number);
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(number)) => number,
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    let home = entry.as_ref().map(|entry| entry.home).filter(|home| !home.is_empty());
    let (gid, groups) = match given_group {
        Some(given) => (find_group(&group, given)?, Vec::new()),
        None => {
            let groups = entry.as_ref().map_or_else(Vec::new, |entry| supplementary(&group, entry.name));
            (entry.as_ref().map_or(0, |entry| entry.gid), groups)
        }
    };
    let home = home.unwrap_or(if uid == 0 { "/root" } else { "/" }).to_owned();
    Ok(User { identity: Identity { uid, gid, groups }, home })
}

/// Resolves a group name or number by the content of the group file.
pub fn resolve_group(text: &str, group: &[u8]) -> Result<u32, UserError> {
    find_group(&text_of(group, "group")?, text)
}

fn find_user<'text>(passwd: &'text str, name: &str, number: Option<u32>) -> Option<PasswdEntry<'text>> {
    let entries = || passwd.lines().filter_map(parse_passwd_line);
    entries().find(|entry| entry.name == name).or_else(|| entries().find(|entry| Some(entry.uid) == number))
}

fn find_group(group: &str, text: &str) -> Result<u32, UserError> {
    let number = parse_id(text)?;
    let named = group.lines().filter_map(parse_group_line).find(|entry| entry.name == text);
    named.map(|entry| entry.gid).or(number).ok_or_else(|| UserError::UnknownGroup(text.to_owned()))
}

fn supplementary(group: &str, name: &str) -> Vec<u32> {
    let mut groups = Vec::new();
    for entry in group.lines().filter_map(parse_group_line) {
        if entry.members.split(',').any(|member| member == name) && !groups.contains(&entry.gid) {
            groups.push(entry.gid);
        }
    }
    groups
}

fn parse_passwd_line(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let (uid, gid) = (fields.nth(1)?, fields.next()?);
    let home = fields.nth(1).unwrap_or("");
    Some(PasswdEntry { name, uid: in_range(uid)?, gid: in_range(gid)?, home })
}

fn parse_group_line(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = in_range(fields.nth(1)?)?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
}

fn in_range(text: &str) -> Option<u32> {
    text.parse::<i32>().ok().and_then(|number| u32::try_from(number).ok())
}

/// A number, no number, or a number that is no id.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    in_range(text).map(Some).ok_or_else(|| UserError::OutOfRange(text.to_owned()))
}

fn text_of<'bytes>(bytes: &'bytes [u8], name: &'static str) -> Result<std::borrow::Cow<'bytes, str>, UserError> {
    if bytes.len() > FILE_LIMIT {
        return Err(UserError::TooLarge(name));
    }
    Ok(String::from_utf8_lossy(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nbroken\nsvc:x:101:102:service:/srv:/bin/false\n\
        app:x:1000:1000:app user:/home/app:/bin/sh\ndev:x:1001:50:developer:/home/dev:/bin/sh\n\
        huge:x:4294967296:0::/:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwheel:x:10:root,app\nstaff:x:50:dev\nsvc:x:102:\napp:x:1000:\nmedia:x:2000:app,dev\n";

    fn resolved(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(text, PASSWD, GROUP).expect(text);
        (user.identity.uid, user.identity.gid, user.identity.groups, user.home)
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(resolved("app"), (1000, 1000, vec![10, 2000], "/home/app".to_owned()));
        assert_eq!(resolved("svc:media"), (101, 2000, vec![], "/srv".to_owned()));
        assert_eq!(resolved("1001"), (1001, 50, vec![50, 2000], "/home/dev".to_owned()));
        assert_eq!(resolved("4242:4343"), (4242, 4343, vec![], "/".to_owned()));
        assert_eq!(resolved("4242"), (4242, 0, vec![], "/".to_owned()));
        assert_eq!(resolved(""), (0, 0, vec![10], "/root".to_owned()));
        assert_eq!(resolved("app:"), (1000, 1000, vec![10, 2000], "/home/app".to_owned()));
    }

    #[test]
    fn images_without_files_have_root_and_numbers() {
        assert_eq!(resolve("", b"", b"").expect("root").identity, Identity::default());
        assert_eq!(resolve("7:8", b"", b"").expect("numbers").identity, Identity { uid: 7, gid: 8, groups: vec![] });
        assert!(resolve("app", b"", b"").is_err());
    }

    #[test]
    fn unknown_names_are_told_as_docker_tells_them() {
        let text = |user: &str| resolve(user, PASSWD, GROUP).expect_err(user).to_string();
        assert_eq!(text("ghost"), "unable to find user ghost: no matching entries in passwd file");
        assert_eq!(text("app:ghosts"), "unable to find group ghosts: no matching entries in group file");
    }

    #[test]
    fn numbers_are_range_checked() {
        for text in ["4294967296", "4294967295", "2147483648", "-1", "0:4294967296", "99999999999999999999"] {
            assert!(matches!(resolve(text, PASSWD, GROUP), Err(UserError::OutOfRange(_))), "{text}");
        }
        // An entry whose number is out of range does not exist.
        assert!(matches!(resolve("huge", PASSWD, GROUP), Err(UserError::UnknownUser(_))));
    }

    #[test]
    fn files_are_bounded() {
        let huge = vec![b'\n'; FILE_LIMIT + 1];
        assert_eq!(resolve("app", &huge, GROUP), Err(UserError::TooLarge("passwd")));
    }
}
