//! Compares the server's OpenAPI document with that of the public API, which it is a subset of.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The statuses that every operation has in addition to the public API's document. They follow the
/// public API's rules for errors, which its document does not repeat for each path.
const COMMON_EXTRA_STATUSES: [&str; 4] = ["408", "413", "500", "503"];

/// The statuses that single operations have in addition to that.
const EXTRA_STATUSES: [(&str, &[&str]); 22] = [
    ("get /v1/config", &["400"]),
    ("get /v1/me", &["400"]),
    ("get /v1/metrics", &["400", "401"]),
    ("get /v1/boxes", &["400", "401"]),
    ("post /v1/boxes", &["401", "415"]),
    ("get /v1/boxes/{box_id}", &["400", "401"]),
    ("head /v1/boxes/{box_id}", &["400", "401"]),
    ("delete /v1/boxes/{box_id}", &["400", "401", "422"]),
    ("get /v1/boxes/{box_id}/metrics", &["400", "401"]),
    ("post /v1/boxes/{box_id}/start", &["400", "401", "422"]),
    ("post /v1/boxes/{box_id}/stop", &["400", "401", "422"]),
    (
        "post /v1/boxes/{box_id}/exec",
        &["401", "415", "422", "429"],
    ),
    (
        "get /v1/boxes/{box_id}/executions/{exec_id}",
        &["400", "401"],
    ),
    (
        "delete /v1/boxes/{box_id}/executions/{exec_id}",
        &["400", "401"],
    ),
    (
        "get /v1/boxes/{box_id}/executions/{exec_id}/attach",
        &["400", "401", "429"],
    ),
    (
        "post /v1/boxes/{box_id}/executions/{exec_id}/signal",
        &["400", "401", "415", "422"],
    ),
    (
        "post /v1/boxes/{box_id}/executions/{exec_id}/resize",
        &["400", "401", "415", "422"],
    ),
    ("get /v1/images", &["400", "401"]),
    ("get /v1/images/{image_id}", &["400", "401"]),
    ("head /v1/images/{image_id}", &["400", "401"]),
    (
        "put /v1/boxes/{box_id}/files",
        &["400", "401", "415", "422", "429"],
    ),
    (
        "get /v1/boxes/{box_id}/files",
        &["400", "401", "422", "429"],
    ),
];

/// The optional properties of the public API that this server does not have.
const MISSING_PROPERTIES: [(&str, &[&str]); 4] = [
    (
        "BoxMetrics",
        &[
            "network_bytes_received",
            "network_bytes_sent",
            "network_tcp_connections",
            "network_tcp_errors",
        ],
    ),
    (
        "BootTiming",
        &[
            "box_config_ms",
            "box_spawn_ms",
            "container_init_ms",
            "filesystem_setup_ms",
            "guest_rootfs_ms",
            "image_prepare_ms",
            "total_create_ms",
        ],
    ),
    ("ErrorModel", &["stack"]),
    ("Principal", &["email"]),
];

/// The properties that this server adds; clients of the public API ignore them.
const ADDED_PROPERTIES: [(&str, &[&str]); 8] = [
    ("ErrorModel", &["exit_code"]),
    ("ExecRequest", &["stdin"]),
    ("BootTiming", &["agent_ms", "kernel_ms", "vmm_ms"]),
    ("BoxMetrics", &["cpu_time_ms", "guest"]),
    ("CreateBoxRequest", &["auto_remove", "restart_policy"]),
    (
        "Box",
        &[
            "auto_remove",
            "detach",
            "error",
            "exit_code",
            "health",
            "last_output",
            "payload_pid",
            "restart_policy",
            "restarting",
            "restarts",
            "signal",
            "started_at",
            "starting",
            "uid",
            "unapplied_rules",
        ],
    ),
    ("ExecutionInfo", &["tty"]),
    (
        "RuntimeMetrics",
        &[
            "boxes_crashed_total",
            "boxes_restarted_total",
            "shim_reaped",
            "shim_reaper_alive",
            "shim_reaper_foreign_waits",
            "shim_reaper_last_sweep_at_ms",
            "shim_reaper_observed",
            "shim_reaper_owner_reaped",
            "shim_reaper_registered",
            "shim_reaper_respawns",
            "shim_reaper_sweeps",
            "shim_reaper_unknown",
            "shim_reaper_vanished",
        ],
    ),
];

/// The response schemas of both documents.
const RESPONSES: [&str; 11] = [
    "Box",
    "BoxMetrics",
    "ErrorModel",
    "ErrorResponse",
    "ExecResponse",
    "ExecutionInfo",
    "ImageInfo",
    "ListBoxesResponse",
    "ListImagesResponse",
    "Principal",
    "RuntimeMetrics",
];

/// The request schemas of both documents.
const REQUESTS: [&str; 10] = [
    "CreateBoxRequest",
    "CreateBoxAdvancedOptions",
    "CreateContainerCapabilities",
    "ExecRequest",
    "NetworkSpec",
    "ResizeRequest",
    "SecretSpec",
    "SignalRequest",
    "StopBoxRequest",
    "VolumeSpec",
];

const METHODS: [&str; 5] = ["get", "head", "post", "put", "delete"];

fn ours() -> Value {
    serde_json::from_str(&vmm_rest::openapi()).unwrap()
}

fn reference() -> Value {
    serde_saphyr::from_str(include_str!("reference/box.openapi.yaml")).unwrap()
}

/// Returns the operations by method and path, in the spelling of this server.
fn operations(document: &Value) -> BTreeMap<(String, String), Value> {
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = match path.strip_prefix("/{prefix}").unwrap_or(path) {
            ours if ours.starts_with("/v1/") => ours.to_owned(),
            bare => format!("/v1{bare}"),
        };
        for (method, operation) in item.as_object().unwrap() {
            if METHODS.contains(&method.as_str()) {
                let shared = item.get("parameters").cloned().unwrap_or_default();
                let mut operation = operation.clone();
                operation["shared"] = shared;
                operations.insert((method.clone(), path.clone()), operation);
            }
        }
    }
    operations
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(path) => document.pointer(path.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

fn statuses(operation: &Value) -> BTreeSet<&str> {
    let responses = operation["responses"].as_object().unwrap();
    responses.keys().map(String::as_str).collect()
}

/// Returns the names of the parameters, except for those in the path.
fn parameters(document: &Value, operation: &Value) -> BTreeSet<String> {
    let lists = [operation.get("parameters"), operation.get("shared")];
    lists
        .into_iter()
        .flatten()
        .filter_map(Value::as_array)
        .flatten()
        .map(|parameter| resolve(document, parameter))
        .filter(|parameter| parameter["in"] != "path")
        .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Returns the operations that both documents have: the key, ours, and the public API's.
fn common_operations() -> Vec<((String, String), Value, Value)> {
    let reference = operations(&reference());
    let both: Vec<_> = operations(&ours())
        .into_iter()
        .filter_map(|(key, ours)| Some((key.clone(), ours, reference.get(&key)?.clone())))
        .collect();
    assert_eq!(both.len(), 22, "{both:?}");
    both
}

fn schema<'a>(document: &'a Value, name: &str) -> &'a Value {
    document
        .pointer(&format!("/components/schemas/{name}"))
        .unwrap()
}

fn strings(value: &Value) -> BTreeSet<&str> {
    let list = value.as_array().into_iter().flatten();
    list.map(|item| item.as_str().unwrap()).collect()
}

fn properties(schema: &Value) -> BTreeSet<&str> {
    let properties = schema["properties"].as_object().unwrap();
    properties.keys().map(String::as_str).collect()
}

fn listed(lists: &[(&str, &'static [&'static str])], name: &str) -> BTreeSet<&'static str> {
    let list = lists.iter().find(|(schema, _)| *schema == name);
    list.map_or(&[][..], |(_, names)| names)
        .iter()
        .copied()
        .collect()
}

#[test]
fn operations_have_the_statuses_of_the_public_api_and_only_listed_extra_ones() {
    for (key, ours, reference) in common_operations() {
        let (ours, reference) = (statuses(&ours), statuses(&reference));
        assert!(
            reference.is_subset(&ours),
            "{key:?}: {reference:?}, here {ours:?}"
        );
        let extra: BTreeSet<_> = &ours - &reference;
        let (method, path) = &key;
        let mut expected = listed(&EXTRA_STATUSES, &format!("{method} {path}"));
        expected.extend(COMMON_EXTRA_STATUSES);
        assert_eq!(extra, expected, "{key:?}");
    }
}

#[test]
fn operations_and_parameters_have_the_same_names() {
    let (our_document, reference_document) = (ours(), reference());
    for (key, ours, reference) in common_operations() {
        assert_eq!(ours["operationId"], reference["operationId"], "{key:?}");
        assert_eq!(
            parameters(&our_document, &ours),
            parameters(&reference_document, &reference),
            "{key:?}"
        );
    }
}

#[test]
fn extra_operations_do_not_use_paths_of_the_public_api() {
    let reference = operations(&reference());
    let paths: BTreeSet<_> = reference.keys().map(|(_, path)| path.clone()).collect();
    let extra: Vec<_> = operations(&ours())
        .into_keys()
        .filter(|key| !reference.contains_key(key))
        .map(|(_, path)| path)
        .collect();
    assert!(extra.iter().all(|path| !paths.contains(path)), "{extra:?}");
}

#[test]
fn responses_have_the_properties_that_the_public_api_requires() {
    let (ours, reference) = (ours(), reference());
    for name in RESPONSES {
        let (here, there) = (schema(&ours, name), schema(&reference, name));
        let required = strings(&there["required"]);
        assert!(required.is_subset(&strings(&here["required"])), "{name}");
        let missing: BTreeSet<_> = &properties(there) - &properties(here);
        assert_eq!(missing, listed(&MISSING_PROPERTIES, name), "{name}");
        let added: BTreeSet<_> = &properties(here) - &properties(there);
        assert_eq!(added, listed(&ADDED_PROPERTIES, name), "{name}");
    }
}

#[test]
fn the_server_config_has_the_names_of_the_public_api() {
    let (ours, reference) = (ours(), reference());
    let there = schema(&reference, "ServerConfig");
    assert_eq!(properties(schema(&ours, "ServerConfig")), properties(there));
    for (name, field) in [
        ("ServerDefaults", "defaults"),
        ("ServerCapabilities", "capabilities"),
    ] {
        let there = properties(&there["properties"][field]);
        let here = properties(schema(&ours, name));
        assert!(here.is_subset(&there), "{name}: {here:?}");
    }
}

#[test]
fn requests_have_all_properties_of_the_public_api() {
    let (ours, reference) = (ours(), reference());
    for name in REQUESTS {
        let (here, there) = (schema(&ours, name), schema(&reference, name));
        let missing: BTreeSet<_> = &properties(there) - &properties(here);
        assert!(missing.is_empty(), "{name}: {missing:?}");
        let added: BTreeSet<_> = &properties(here) - &properties(there);
        assert_eq!(added, listed(&ADDED_PROPERTIES, name), "{name}");
        assert_eq!(
            strings(&here["required"]),
            strings(&there["required"]),
            "{name}"
        );
        assert_eq!(
            here.get("additionalProperties"),
            there.get("additionalProperties"),
            "{name}"
        );
    }
}

#[test]
fn enumerations_are_the_same() {
    let (ours, reference) = (ours(), reference());
    let code = schema(&reference, "ErrorModel")
        .pointer("/properties/code")
        .unwrap();
    let kind = schema(&reference, "Principal")
        .pointer("/properties/principal_type")
        .unwrap();
    let mode = schema(&reference, "NetworkSpec")
        .pointer("/properties/mode")
        .unwrap();
    let execution = schema(&reference, "ExecutionInfo")
        .pointer("/properties/status")
        .unwrap();
    for (name, there) in [
        ("ExecutionStatus", execution),
        ("BoxStatus", schema(&reference, "BoxStatus")),
        ("SecurityPreset", schema(&reference, "SecurityPreset")),
        ("ErrorCode", code),
        ("PrincipalType", kind),
        ("NetworkMode", mode),
    ] {
        let here = strings(&schema(&ours, name)["enum"]);
        assert_eq!(here, strings(&there["enum"]), "{name}");
    }
}

/// The constraints of a value that are compared.
#[derive(Debug, PartialEq)]
struct Shape {
    types: BTreeSet<String>,
    nullable: bool,
    minimum: f64,
    maximum: f64,
}

/// Returns the shape of a schema of OpenAPI 3.0, or of 3.1, where `null` is a type.
fn shape(document: &Value, value: &Value) -> Shape {
    let alternatives = ["oneOf", "anyOf", "allOf"].iter();
    let mut parts: Vec<_> = alternatives
        .filter_map(|key| value.get(*key)?.as_array())
        .flatten()
        .map(|part| resolve(document, part))
        .collect();
    parts.push(resolve(document, value));
    let mut types = BTreeSet::new();
    for part in &parts {
        match &part["type"] {
            Value::String(name) => drop(types.insert(name.clone())),
            list => types.extend(strings(list).into_iter().map(str::to_owned)),
        }
    }
    let number = |key: &str| parts.iter().find_map(|part| part[key].as_f64());
    Shape {
        nullable: types.remove("null") | (value["nullable"] == true),
        types,
        minimum: number("minimum").unwrap_or(f64::NEG_INFINITY),
        maximum: number("maximum").unwrap_or(f64::INFINITY),
    }
}

/// Returns the properties that both documents have in these schemas.
fn shapes(names: &[&'static str]) -> Vec<(String, Shape, Shape)> {
    let (ours, reference) = (ours(), reference());
    let mut both = Vec::new();
    for name in names {
        let (here, there) = (schema(&ours, name), schema(&reference, name));
        for property in &properties(here) & &properties(there) {
            let of = |document, schema: &Value| shape(document, &schema["properties"][property]);
            both.push((
                format!("{name}.{property}"),
                of(&ours, here),
                of(&reference, there),
            ));
        }
    }
    both
}

#[test]
fn the_public_api_allows_every_value_in_a_response() {
    for (property, here, there) in shapes(&RESPONSES) {
        assert_eq!(here.types, there.types, "{property}");
        assert!(there.nullable || !here.nullable, "{property} can be null");
        assert!(
            here.minimum >= there.minimum && here.maximum <= there.maximum,
            "{property}: {here:?} is wider than {there:?}"
        );
    }
}

#[test]
fn requests_accept_every_value_that_the_public_api_allows() {
    for (property, here, there) in shapes(&REQUESTS) {
        assert_eq!(here.types, there.types, "{property}");
        assert!(here.nullable || !there.nullable, "{property} can't be null");
        assert!(
            here.minimum <= there.minimum && here.maximum >= there.maximum,
            "{property}: {here:?} is narrower than {there:?}"
        );
    }
}

#[test]
fn the_public_api_has_every_error_type() {
    let reference = reference();
    let schema = schema(&reference, "ErrorModel");
    let types = strings(schema.pointer("/properties/type/enum").unwrap());
    for code in strings(schema.pointer("/properties/code/enum").unwrap()) {
        let code: vmm_rest::wire::ErrorCode = serde_json::from_value(code.into()).unwrap();
        assert!(types.contains(code.type_name()), "{code:?}");
    }
}
