use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown, futimens,
    utimensat,
};
use rustix::io::Errno;

use crate::member::Member;
use crate::tree::Place;
use crate::{ArchiveError, ExtractOptions};

/// The owner, mode and time that a file gets.
#[derive(Debug)]
pub(crate) struct Attributes {
    owner: Option<(Uid, Gid)>,
    mode: Mode,
    times: Timestamps,
}

impl Attributes {
    pub(crate) fn new(member: &Member, options: &ExtractOptions) -> Result<Self, ArchiveError> {
        let mask = if options.preserve { 0o7777 } else { 0o777 };
        let (uid, gid) = member.owner;
        let owner = if options.preserve {
            Some((Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?)))
        } else {
            None
        };
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: i64::try_from(member.modified).unwrap_or(i64::MAX),
                tv_nsec: 0,
            },
        };
        Ok(Self {
            owner,
            mode: Mode::from_raw_mode(member.mode & mask),
            times,
        })
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn apply(&self, fd: impl AsFd) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            // First, because it clears bits of the mode.
            fchown(&fd, Some(uid), Some(gid))?;
        }
        fchmod(&fd, self.mode)?;
        futimens(fd, &self.times)
    }

    /// Applies the owner and the time to what cannot be opened.
    pub(crate) fn apply_at(&self, place: &Place) -> Result<(), Errno> {
        let (dir, name) = (&place.parent, &place.name);
        if let Some((uid, gid)) = self.owner {
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        utimensat(dir, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn id(id: u64) -> Result<u32, ArchiveError> {
    // The kernel takes the largest one for "do not change", chown(2).
    let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| ArchiveError::Invalid("an owner is out of range".to_owned()))
}
