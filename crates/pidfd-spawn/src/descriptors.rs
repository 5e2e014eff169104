use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A descriptor of the parent, and the number that it gets in the child.
pub(crate) struct Move {
    pub(crate) from: RawFd,
    pub(crate) to: RawFd,
}

/// A descriptor of the parent that the child gets.
pub(crate) enum Source<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
}

impl AsFd for Source<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => *fd,
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

/// The descriptors that the child gets. No move overwrites the source of another one, so the child
/// makes them in any order.
pub(crate) struct Descriptors<'a> {
    moves: Vec<Move>,
    _sources: Vec<Source<'a>>,
}

impl<'a> Descriptors<'a> {
    /// Duplicates the sources that a move would overwrite.
    pub(crate) fn plan(wanted: Vec<(RawFd, Source<'a>)>) -> io::Result<Self> {
        let mut plan = Self {
            moves: wanted
                .iter()
                .map(|(to, source)| Move {
                    from: source.as_fd().as_raw_fd(),
                    to: *to,
                })
                .collect(),
            _sources: Vec::with_capacity(wanted.len()),
        };
        for (index, (to, source)) in wanted.into_iter().enumerate() {
            let from = source.as_fd().as_raw_fd();
            let source = if from != to && plan.overwrites(from) {
                Source::Owned(plan.duplicate(source.as_fd())?)
            } else {
                source
            };
            plan.moves[index].from = source.as_fd().as_raw_fd();
            plan._sources.push(source);
        }
        Ok(plan)
    }

    pub(crate) fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// Returns the descriptor, or a duplicate whose number is not overwritten in the child.
    pub(crate) fn keep(&self, fd: OwnedFd) -> io::Result<OwnedFd> {
        if self.overwrites(fd.as_raw_fd()) {
            self.duplicate(fd.as_fd())
        } else {
            Ok(fd)
        }
    }

    fn overwrites(&self, fd: RawFd) -> bool {
        self.moves.iter().any(|planned| planned.to == fd)
    }

    fn duplicate(&self, fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        // Unsuitable numbers stay in use until a suitable one is found.
        let mut unsuitable = Vec::new();
        loop {
            let duplicate = fd.try_clone_to_owned()?;
            if !self.overwrites(duplicate.as_raw_fd()) {
                return Ok(duplicate);
            }
            unsuitable.push(duplicate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn no_source_is_the_target_of_another_move() {
        let open = || OwnedFd::from(File::open("/dev/null").unwrap());
        let fds: Vec<OwnedFd> = (0..8).map(|_| open()).collect();
        let mut targets: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        targets.rotate_left(1);
        let wanted = targets
            .iter()
            .copied()
            .zip(fds.into_iter().map(Source::Owned));
        let plan = Descriptors::plan(wanted.collect()).unwrap();

        for planned in plan.moves() {
            assert!(!targets.contains(&planned.from), "{}", planned.from);
        }
        let kept = plan.keep(open()).unwrap();
        assert!(!targets.contains(&kept.as_raw_fd()));
    }

    #[test]
    fn a_descriptor_that_keeps_its_number_is_not_duplicated() {
        let fd = OwnedFd::from(File::open("/dev/null").unwrap());
        let number = fd.as_raw_fd();
        let plan = Descriptors::plan(vec![(number, Source::Owned(fd))]).unwrap();
        assert_eq!(plan.moves()[0].from, number);
    }
}
