use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::failure::Failure;
use crate::output::print_raw;

/// What a box prints, in a file that may not be there yet.
#[derive(Debug)]
pub(super) struct Console {
    path: PathBuf,
    file: Option<File>,
}

impl Console {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Prints what is new.
    pub(super) fn show(&mut self) -> Result<(), Failure> {
        let failed = Failure::system("read what the box prints");
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed(error)),
            },
        };
        let mut piece = [0; 1 << 14];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(length) => print_raw(&piece[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}
