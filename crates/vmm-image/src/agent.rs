use std::fs;
use std::path::Path;

use object::Endianness;
use object::elf::{EM_X86_64, PT_INTERP};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use crate::BuildError;

/// Returns the program of an agent. It must be static: a guest has no libraries before its root file
/// system is mounted.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    let program = fs::read(path).map_err(BuildError::read(path))?;
    check(&program).map_err(|reason| BuildError::NotAnAgent {
        path: path.to_owned(),
        reason,
    })?;
    Ok(program)
}

fn check(program: &[u8]) -> Result<(), String> {
    let file = ElfFile64::<Endianness>::parse(program)
        .map_err(|error| format!("it is not a program ({error})"))?;
    let endian = file.endian();
    if file.elf_header().e_machine(endian) != EM_X86_64 {
        return Err("it is not a program for x86-64".to_owned());
    }
    let mut headers = file.elf_program_headers().iter();
    if headers.any(|header| header.p_type(endian) == PT_INTERP) {
        return Err("it needs shared libraries".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_cannot_be_an_agent() {
        let shell = fs::canonicalize("/bin/sh").unwrap();
        let error = read(&shell).unwrap_err().to_string();
        assert!(
            error.contains("shared libraries") && error.contains("crt-static"),
            "{error}"
        );
        let error = read(Path::new("/etc/passwd")).unwrap_err();
        assert!(matches!(error, BuildError::NotAnAgent { .. }), "{error}");
    }
}
