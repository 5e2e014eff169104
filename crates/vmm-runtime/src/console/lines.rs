use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Returns where the last `lines` lines of a file begin, and how many of them it has.
pub(super) fn start_of_last(file: &File, lines: u64) -> io::Result<(u64, u64)> {
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok((end, 0));
    }
    let mut buffer = [0; 1 << 14];
    let mut at = end;
    let mut found = 0;
    while at > 0 {
        let length = at.min(buffer.len() as u64);
        at -= length;
        let chunk = &mut buffer[..length as usize];
        file.read_exact_at(chunk, at)?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let next = at + index as u64 + 1;
            // The newline at the end belongs to the last line.
            if *byte == b'\n' && next < end {
                found += 1;
                if found == lines {
                    return Ok((next, lines));
                }
            }
        }
    }
    Ok((0, found + u64::from(end > 0)))
}

/// Returns whether the last line of a file is complete.
pub(super) fn ends_with_newline(file: &File) -> io::Result<bool> {
    let mut last = [b'\n'];
    if let Some(at) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(last == *b"\n")
}
