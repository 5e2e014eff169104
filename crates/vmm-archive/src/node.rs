use std::path::Path;

use rustix::fs::{AtFlags, FileType, linkat, makedev, mknodat, symlinkat};
use rustix::io::Errno;
use tar::EntryType;

use crate::attributes::Attributes;
use crate::destination::Destination;
use crate::member::{Member, relative};
use crate::tree::Place;
use crate::{ArchiveError, ExtractOptions};

/// What an entry without content creates.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Symlink(&'a Path),
    /// A hard link to a file below the destination.
    Link(Place),
    /// A FIFO, or a device with this number.
    Special(FileType, u64),
}

impl<'a> Node<'a> {
    /// Returns what the entry creates; an error if the options do not allow that.
    pub(crate) fn of(
        member: &'a Member,
        destination: &Destination,
        options: &ExtractOptions,
    ) -> Result<Self, ArchiveError> {
        let (major, minor) = member.device;
        Ok(match member.kind {
            EntryType::Symlink => Self::Symlink(&member.link),
            EntryType::Link => {
                let source = destination.locate(&relative(&member.link)?)?;
                let place = destination.tree.place(&source)?;
                Self::Link(place.ok_or(ArchiveError::Escapes(source))?)
            }
            EntryType::Fifo => Self::Special(FileType::Fifo, 0),
            EntryType::Char if options.preserve => {
                Self::Special(FileType::CharacterDevice, makedev(major, minor))
            }
            EntryType::Block if options.preserve => {
                Self::Special(FileType::BlockDevice, makedev(major, minor))
            }
            kind => {
                let path = member.path.display();
                let message = format!("{path} has the type {kind:?}, which is not extracted");
                return Err(ArchiveError::Invalid(message));
            }
        })
    }

    /// Creates it. A hard link keeps the attributes of its file.
    pub(crate) fn create(&self, place: &Place, attributes: &Attributes) -> Result<(), Errno> {
        let (parent, name) = (&place.parent, &place.name);
        match self {
            Self::Symlink(target) => symlinkat(*target, parent, name)?,
            Self::Link(file) => {
                return linkat(&file.parent, &file.name, parent, name, AtFlags::empty());
            }
            Self::Special(kind, device) => {
                mknodat(parent, name, *kind, attributes.mode(), *device)?;
            }
        }
        attributes.apply_at(place)
    }
}
