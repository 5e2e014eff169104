use std::fs;

/// The user and the groups of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    /// Finds `USER[:GROUP]`, names or numbers, in the files of the guest. A static program cannot
    /// use the name services of the C library.
    ///
    /// # Errors
    ///
    /// A message, if a name is not in the files.
    pub(crate) fn find(name: &str) -> Result<Self, String> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(name, &read("/etc/passwd"), &read("/etc/group"))
    }

    /// Returns the home directory of a user; `/` if the user is not in the files.
    pub(crate) fn home(uid: u32) -> String {
        let user = Self::find(&uid.to_string());
        user.map_or_else(|_| "/".to_owned(), |user| user.home)
    }

    fn parse(name: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, group_name) = match name.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (name, None),
        };
        // NAME:PASSWORD:UID:GID:COMMENT:HOME:SHELL
        let entry = entries(passwd).find(|fields| {
            matches!(fields[..], [name, _, uid, _, _, _, ..] if name == user || uid == user)
        });
        let found = entry.as_deref().and_then(|fields| {
            Some((
                fields[0],
                fields[2].parse().ok()?,
                fields[3].parse().ok()?,
                fields[5],
            ))
        });
        let (user_name, uid, primary, home) = match found {
            Some(found) => found,
            None => {
                let uid = user.parse().map_err(|_| {
                    format!("user {user:?} not found in /etc/passwd of the guest; use a number")
                })?;
                ("", uid, 0, "/")
            }
        };
        // NAME:PASSWORD:GID:MEMBER,…
        let gid = match group_name {
            None => primary,
            Some(wanted) => entries(group)
                .find(|fields| fields.first() == Some(&wanted))
                .and_then(|fields| fields.get(2)?.parse().ok())
                .or_else(|| wanted.parse().ok())
                .ok_or_else(|| {
                    format!("group {wanted:?} not found in /etc/group of the guest; use a number")
                })?,
        };
        let memberships = entries(group).filter(|fields| {
            let mut members = fields.get(3).into_iter().flat_map(|list| list.split(','));
            !user_name.is_empty() && members.any(|member| member == user_name)
        });
        let mut groups: Vec<u32> = memberships
            .filter_map(|fields| fields.get(2)?.parse().ok())
            .collect();
        if !groups.contains(&gid) {
            groups.insert(0, gid);
        }
        Ok(Self {
            uid,
            gid,
            groups,
            home: home.to_owned(),
        })
    }
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/false\nbad\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:4:other,www\nbad\n";

    fn parse(name: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let user = User::parse(name, PASSWD, GROUP)?;
        Ok((user.uid, user.gid, user.groups, user.home))
    }

    #[test]
    fn names_and_numbers_are_found_with_their_groups() {
        let www = (33, 34, vec![34, 4], "/var/www".to_owned());
        assert_eq!(parse("www").as_ref(), Ok(&www));
        assert_eq!(parse("33"), Ok(www));
        assert_eq!(
            parse("www:logs"),
            Ok((33, 4, vec![4], "/var/www".to_owned()))
        );
        assert_eq!(parse("root:7"), Ok((0, 7, vec![7], "/root".to_owned())));
    }

    #[test]
    fn a_number_that_is_not_in_the_files_is_a_user_and_a_name_is_not() {
        assert_eq!(parse("1000"), Ok((1000, 0, vec![0], "/".to_owned())));
        assert!(parse("nemo").unwrap_err().contains("nemo"));
        assert!(parse("www:nemo").unwrap_err().contains("nemo"));
    }
}
