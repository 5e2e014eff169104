use std::collections::BTreeMap;
use std::path::PathBuf;

use vmm_protocol::InstanceSpec;
use vmm_protocol::frames::ExecSpec;
use vmm_protocol::network::GuestNetwork;

/// What a guest gets through its agent: its network, and what the workload and all executions beside it
/// have in common.
pub(in crate::qemu) struct GuestEnvironment {
    env: BTreeMap<String, String>,
    working_dir: Option<PathBuf>,
    user: Option<String>,
    /// Until the agent is asked to configure it.
    pub(super) network: Option<GuestNetwork>,
}

impl GuestEnvironment {
    pub(in crate::qemu) fn new(
        spec: &InstanceSpec,
        user: Option<String>,
        network: Option<GuestNetwork>,
    ) -> Self {
        let mut env = spec.payload.env.clone();
        env.insert("VMM_BOX_ID".to_owned(), spec.id.clone());
        Self {
            env,
            working_dir: spec.payload.working_dir.clone(),
            user,
            network,
        }
    }

    /// Adds what the spec of a command does not set itself.
    pub(super) fn apply(&self, exec: &mut ExecSpec) {
        for (name, value) in &self.env {
            exec.env
                .entry(name.clone())
                .or_insert_with(|| value.clone());
        }
        if exec.working_dir.is_none() {
            exec.working_dir.clone_from(&self.working_dir);
        }
        if exec.user.is_none() {
            exec.user.clone_from(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_protocol::PayloadSpec;

    use super::*;

    #[test]
    fn a_command_has_the_environment_of_the_box_unless_it_sets_its_own() {
        let mut payload = PayloadSpec::command(["true"]);
        for name in ["A", "B"] {
            payload.env.insert(name.into(), "box".into());
        }
        payload.working_dir = Some("/box".into());
        let spec = InstanceSpec::new("b1", payload);
        let environment = GuestEnvironment::new(&spec, Some("www".to_owned()), None);

        let mut plain = ExecSpec::new("", ["true"]);
        environment.apply(&mut plain);
        assert_eq!(plain.env["A"], "box");
        assert_eq!(plain.env["VMM_BOX_ID"], "b1");
        assert_eq!(plain.working_dir, Some("/box".into()));
        assert_eq!(plain.user.as_deref(), Some("www"));

        let mut own = ExecSpec::new("", ["true"]);
        own.env.insert("B".into(), "own".into());
        own.working_dir = Some("/own".into());
        own.user = Some("root".to_owned());
        environment.apply(&mut own);
        assert_eq!((&*own.env["A"], &*own.env["B"]), ("box", "own"));
        assert_eq!(own.working_dir, Some("/own".into()));
        assert_eq!(own.user.as_deref(), Some("root"));
    }
}
