//! The server's OpenAPI document beside that of the public API, which it is a subset of.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What every operation answers beyond the public API's document. It follows the public API's own
/// rules for errors, which that document does not spell out for each path.
const MORE_STATUSES: [&str; 4] = ["408", "413", "500", "503"];

/// What one operation answers beyond that.
const MORE_STATUSES_OF: [(&str, &[&str]); 11] = [
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
];

/// What this server cannot tell, and the public API does not require.
const LEFT_OUT: [(&str, &[&str]); 3] = [
    (
        "BoxMetrics",
        &[
            "boot_timing",
            "network_bytes_received",
            "network_bytes_sent",
            "network_tcp_connections",
            "network_tcp_errors",
        ],
    ),
    ("ErrorModel", &["stack"]),
    ("Principal", &["email"]),
];

/// What this server adds; clients of the public API ignore it.
const ADDED: [(&str, &[&str]); 2] = [
    (
        "Box",
        &[
            "detach",
            "error",
            "exit_code",
            "health",
            "payload_pid",
            "signal",
            "started_at",
        ],
    ),
    (
        "RuntimeMetrics",
        &[
            "boxes_crashed_total",
            "shim_reaped",
            "shim_reaper_alive",
            "shim_reaper_last_sweep_at_ms",
            "shim_reaper_registered",
            "shim_reaper_respawns",
            "shim_reaper_sweeps",
            "shim_reaper_vanished",
        ],
    ),
];

/// Schemas of what both answer.
const ANSWERS: [&str; 7] = [
    "Box",
    "BoxMetrics",
    "ErrorModel",
    "ErrorResponse",
    "ListBoxesResponse",
    "Principal",
    "RuntimeMetrics",
];

/// Schemas of what both can be asked for.
const REQUESTS: [&str; 7] = [
    "CreateBoxRequest",
    "CreateBoxAdvancedOptions",
    "CreateContainerCapabilities",
    "NetworkSpec",
    "SecretSpec",
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

/// By method and path, as this server spells it.
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

/// Names of the parameters, but for the path's, which are spelled in it.
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

fn implemented() -> Vec<((String, String), Value, Value)> {
    let reference = operations(&reference());
    let both: Vec<_> = operations(&ours())
        .into_iter()
        .filter_map(|(key, ours)| Some((key.clone(), ours, reference.get(&key)?.clone())))
        .collect();
    assert_eq!(both.len(), 11, "{both:?}");
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
fn every_status_of_the_public_api_is_there_and_every_other_one_is_intended() {
    for (key, ours, reference) in implemented() {
        let (ours, reference) = (statuses(&ours), statuses(&reference));
        assert!(
            reference.is_subset(&ours),
            "{key:?}: {reference:?}, here {ours:?}"
        );
        let more: BTreeSet<_> = &ours - &reference;
        let (method, path) = &key;
        let mut intended = listed(&MORE_STATUSES_OF, &format!("{method} {path}"));
        intended.extend(MORE_STATUSES);
        assert_eq!(more, intended, "{key:?}");
    }
}

#[test]
fn operations_and_parameters_have_the_same_names() {
    let (our_document, reference_document) = (ours(), reference());
    for (key, ours, reference) in implemented() {
        assert_eq!(ours["operationId"], reference["operationId"], "{key:?}");
        assert_eq!(
            parameters(&our_document, &ours),
            parameters(&reference_document, &reference),
            "{key:?}"
        );
    }
}

#[test]
fn every_path_beyond_the_public_api_is_one_that_it_does_not_have() {
    let reference = operations(&reference());
    let paths: BTreeSet<_> = reference.keys().map(|(_, path)| path.clone()).collect();
    let more: Vec<_> = operations(&ours())
        .into_keys()
        .filter(|key| !reference.contains_key(key))
        .map(|(_, path)| path)
        .collect();
    assert!(more.iter().all(|path| !paths.contains(path)), "{more:?}");
}

#[test]
fn what_is_answered_has_what_the_public_api_requires() {
    let (ours, reference) = (ours(), reference());
    for name in ANSWERS {
        let (here, there) = (schema(&ours, name), schema(&reference, name));
        let required = strings(&there["required"]);
        assert!(required.is_subset(&strings(&here["required"])), "{name}");
        let left_out: BTreeSet<_> = &properties(there) - &properties(here);
        assert_eq!(left_out, listed(&LEFT_OUT, name), "{name}");
        let added: BTreeSet<_> = &properties(here) - &properties(there);
        assert_eq!(added, listed(&ADDED, name), "{name}");
    }
}

#[test]
fn what_the_server_says_that_it_can_do_is_named_as_in_the_public_api() {
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
fn what_is_asked_for_may_be_all_that_the_public_api_knows() {
    let (ours, reference) = (ours(), reference());
    for name in REQUESTS {
        let (here, there) = (schema(&ours, name), schema(&reference, name));
        assert_eq!(properties(here), properties(there), "{name}");
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
    for (name, there) in [
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

/// What a value may be, as far as both documents say.
#[derive(Debug, PartialEq)]
struct Shape {
    types: BTreeSet<String>,
    nullable: bool,
    least: f64,
    most: f64,
}

/// Of version 3.0 of OpenAPI, or 3.1, which writes `null` as a type.
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
        least: number("minimum").unwrap_or(f64::NEG_INFINITY),
        most: number("maximum").unwrap_or(f64::INFINITY),
    }
}

/// Every property that both documents have, of schemas of these names.
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
fn every_value_that_is_answered_is_one_that_the_public_api_allows() {
    for (property, here, there) in shapes(&ANSWERS) {
        assert_eq!(here.types, there.types, "{property}");
        assert!(there.nullable || !here.nullable, "{property} can be null");
        assert!(
            here.least >= there.least && here.most <= there.most,
            "{property}: {here:?} goes beyond {there:?}"
        );
    }
}

#[test]
fn every_value_that_the_public_api_allows_can_be_asked_for() {
    for (property, here, there) in shapes(&REQUESTS) {
        assert_eq!(here.types, there.types, "{property}");
        assert!(here.nullable || !there.nullable, "{property} can't be null");
        assert!(
            here.least <= there.least && here.most >= there.most,
            "{property}: {here:?} is narrower than {there:?}"
        );
    }
}

#[test]
fn every_type_of_an_error_is_one_that_the_public_api_has() {
    let reference = reference();
    let schema = schema(&reference, "ErrorModel");
    let types = strings(schema.pointer("/properties/type/enum").unwrap());
    for code in strings(schema.pointer("/properties/code/enum").unwrap()) {
        let code: vmm_rest::wire::ErrorCode = serde_json::from_value(code.into()).unwrap();
        assert!(types.contains(code.type_name()), "{code:?}");
    }
}
