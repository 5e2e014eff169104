use vmm_runtime::PayloadSpec;

/// What is wrong with a payload that could never run, whatever engine it is for; the field first,
/// of which `command_field` is the command's.
pub(crate) fn check(payload: &PayloadSpec, command_field: &str) -> Result<(), String> {
    let PayloadSpec {
        engine,
        command,
        env,
        working_dir,
        console,
        ..
    } = payload;
    match command.first() {
        None if engine == PROCESS => {
            return Err(format!("{command_field}: there is no command to run"));
        }
        Some(program) if program.is_empty() => {
            return Err(format!("{command_field}: the name of the program is empty"));
        }
        _ => {}
    }
    if command.iter().any(|word| has_nul(word)) {
        return Err(format!("{command_field}: no argument can have a NUL in it"));
    }
    let wrong = env.iter().find(|(name, value)| {
        name.is_empty() || name.contains('=') || has_nul(name) || has_nul(value)
    });
    if let Some((name, _)) = wrong {
        return Err(format!(
            "env: {name:?} cannot be set: a name is not empty and has no '=', and nothing has a NUL"
        ));
    }
    if !console.is_valid() {
        return Err("console: max_bytes must be at least 4096, and files at least 1".to_owned());
    }
    match working_dir {
        Some(dir) if !dir.is_absolute() || has_nul(&dir.to_string_lossy()) => {
            Err("working_dir is no absolute path".to_owned())
        }
        _ => Ok(()),
    }
}

/// The engine whose payload is a command.
const PROCESS: &str = "process";

fn has_nul(text: &str) -> bool {
    text.contains('\0')
}
