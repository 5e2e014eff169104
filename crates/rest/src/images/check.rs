use vmm_runtime::PayloadSpec;

/// What is wrong with a payload that could never run, whatever engine it is for; the field first.
pub(crate) fn check(payload: &PayloadSpec) -> Result<(), String> {
    let PayloadSpec {
        engine,
        command,
        env,
        working_dir,
        ..
    } = payload;
    match command.first() {
        None if engine == PROCESS => return Err("cmd: there is no command to run".to_owned()),
        Some(program) if program.is_empty() => {
            return Err("cmd: the name of the program is empty".to_owned());
        }
        _ => {}
    }
    if command.iter().any(|word| has_nul(word)) {
        return Err("cmd: no argument can have a NUL in it".to_owned());
    }
    let wrong = env.iter().find(|(name, value)| {
        name.is_empty() || name.contains('=') || has_nul(name) || has_nul(value)
    });
    if let Some((name, _)) = wrong {
        return Err(format!(
            "env: {name:?} cannot be set: a name is not empty and has no '=', and nothing has a NUL"
        ));
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
