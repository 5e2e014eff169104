use serde::Deserialize;
use serde_json::Value;
use vmm_protocol::frames::{RequestError, RequestErrorKind};

use super::qmp::Monitor;
use crate::Call;

/// The commands of the QEMU Machine Protocol that clients may send: those that change nothing. A command
/// that changes the guest would bypass what the runtime knows about it.
const QUERIES: [&str; 7] = [
    "query-block",
    "query-blockstats",
    "query-cpus-fast",
    "query-kvm",
    "query-memory-size-summary",
    "query-status",
    "query-version",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    execute: String,
}

impl Call for Monitor {
    fn call(&self, request: &Value) -> Result<Value, RequestError> {
        let query = Query::deserialize(request).ok();
        let query = query.filter(|query| QUERIES.contains(&&*query.execute));
        let query = query.ok_or_else(|| {
            let message = format!(
                "the engine qemu takes the request {{\"execute\": QUERY}}, where QUERY is one of {}",
                QUERIES.join(", ")
            );
            RequestError::new(RequestErrorKind::Invalid, message)
        })?;
        self.request(&query.execute)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_a_permitted_query_does_not_reach_qemu() {
        let (here, qemu) = UnixStream::pair().unwrap();
        let monitor = Monitor::start(here).unwrap();
        for request in [
            json!({"execute": "quit"}),
            json!({"execute": "query-status", "arguments": {}}),
            json!({"execute": "query-status\"}\n{\"execute\": \"quit"}),
            json!({}),
            json!("query-status"),
        ] {
            let error = monitor.call(&request).unwrap_err();
            assert_eq!(error.kind, RequestErrorKind::Invalid, "{request}");
            assert!(error.message.contains("query-status"), "{error}");
        }
        drop(monitor);
        qemu.set_nonblocking(true).unwrap();
        let mut sent = [0; 1024];
        let length = std::io::Read::read(&mut &qemu, &mut sent).unwrap();
        let sent = String::from_utf8_lossy(&sent[..length]).into_owned();
        assert_eq!(sent, "{\"execute\":\"qmp_capabilities\"}\n");
    }
}
